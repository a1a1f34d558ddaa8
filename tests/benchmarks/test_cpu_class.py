from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cpu_class import suffix


@pytest.mark.parametrize(
    ("vendor", "family", "model", "flags", "name"),
    [
        ("AuthenticAMD", 23, 1, "avx2 fma", "-128bit"),
        ("AuthenticAMD", 23, 0x18, "avx2 fma", "-128bit"),
        ("AuthenticAMD", 23, 0x31, "avx2 fma", ""),
        ("AuthenticAMD", 25, 1, "avx2 fma", ""),
        ("AuthenticAMD", 25, 17, "avx2 avx512_vnni", "-vnni"),
        ("HygonGenuine", 24, 1, "avx2 fma", "-128bit"),
        ("GenuineIntel", 6, 63, "avx2 fma", ""),
        ("GenuineIntel", 6, 190, "avx2 avx_vnni", "-vnni"),
    ],
)
def test_a_class_is_read_off_the_processor(
    vendor: str, family: int, model: int, flags: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: X\nflags\t\t: fpu {flags}\n"
    )
    assert suffix(tmp_path) == name


def test_without_such_a_file_there_is_no_class(tmp_path: Path) -> None:
    assert suffix(tmp_path) == ""
