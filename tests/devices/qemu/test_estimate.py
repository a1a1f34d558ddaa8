"""Cycles from executed blocks: what llvm-mca tells of known code, and what is done without it."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.devices.qemu import estimate, packages
from edgevit.devices.qemu.estimate import (
    Block,
    Mca,
    assumptions,
    cycles_of,
    find_mca,
    mean,
    missing,
    read_blocks,
)
from edgevit.errors import DeviceError
from edgevit.schema.arm_cpus import ARM_CPUS
from tests.absent import unavailable

# Encodings by GNU as 2.40, as they lie in memory.
FMLA = bytes.fromhex("20cc224e")  # fmla v0.4s, v1.4s, v2.4s: each adds to what the one before left
FMLA_3 = bytes.fromhex("23cc224e")  # fmla v3.4s, v1.4s, v2.4s
BL, RET = bytes.fromhex("02000094"), bytes.fromhex("c0035fd6")
VFMADD = bytes.fromhex("c4e275b8c2")  # vfmadd231ps %ymm2, %ymm1, %ymm0


@pytest.fixture(scope="module")
def mca() -> Mca:
    found = find_mca()
    if found is None:
        unavailable(missing())
    return found


def one(mca: Mca, cpu: str, code: bytes, runs: float = 1000) -> float:
    """Cycles of one pass through a block by itself."""
    blocks = [Block(code=code, instructions=len(code) // 4, runs=runs)]
    (cycles,), covered = cycles_of(mca, ARM_CPUS[cpu].core, [blocks])
    assert covered == 1 and cycles.busy <= cycles.alone
    return cycles.alone / runs


def test_every_emulated_processor_has_a_core(mca: Mca) -> None:
    for name, cpu in ARM_CPUS.items():
        core = cpu.core
        assert one(mca, name, FMLA) >= 1
        assert all(cache.bytes % (64 * cache.ways) == 0 for cache in core.caches)
        assert sorted(cache.bytes for cache in core.caches) == [cache.bytes for cache in core.caches]


def test_a_chain_takes_its_latency_and_independent_work_its_throughput(mca: Mca) -> None:
    """FMLA takes 4 cycles on Neoverse N1 (its optimization guide), and two may begin in one cycle."""
    assert one(mca, "cortex-a76", FMLA * 8) / 8 == pytest.approx(4, rel=0.1)
    blocks = [Block(code=FMLA * 8, instructions=8, runs=1)]
    (chain,), _ = cycles_of(mca, ARM_CPUS["cortex-a76"].core, [blocks])
    assert chain.busy == 4, "two units, eight instructions: what they wait for is not in the lower bound"
    # Two chains side by side take no longer than one.
    assert one(mca, "cortex-a76", (FMLA + FMLA_3) * 8) < 1.1 * one(mca, "cortex-a76", FMLA * 8)
    wide = b"".join(bytes([0x20 + register, 0xCC, 0x22, 0x4E]) for register in (*range(4, 16),))
    assert one(mca, "cortex-a76", wide) / 12 == pytest.approx(0.5, rel=0.1)
    assert one(mca, "cortex-a72", wide) > 1.5 * one(mca, "cortex-a76", wide)


def test_a_call_costs_no_more_than_a_jump(mca: Mca) -> None:
    for name in ARM_CPUS:
        assert one(mca, name, BL) <= 3 and one(mca, name, RET) <= 3


def test_cycles_follow_the_counts(mca: Mca) -> None:
    block = Block(code=FMLA * 8, instructions=8, runs=100)
    paths = [[block], [replace(block, runs=300)], [block, Block(code=BL, instructions=1, runs=1)]]
    (first, second, third), covered = cycles_of(mca, ARM_CPUS["cortex-a76"].core, paths)
    assert second.alone == pytest.approx(3 * first.alone) and second.busy == pytest.approx(3 * first.busy)
    # What hardly ran is left out, and taken to be as fast.
    assert third.alone == pytest.approx(first.alone * 801 / 800) and covered == pytest.approx(800 / 801)


def test_blocks_that_cannot_be_read_are_left_out_or_an_error(mca: Mca) -> None:
    unknown = Block(code=bytes.fromhex("00000002"), instructions=1, runs=30)
    known = Block(code=FMLA, instructions=1, runs=70)
    (cycles,), covered = cycles_of(mca, ARM_CPUS["cortex-a76"].core, [[known, unknown]])
    assert cycles.alone == pytest.approx(one(mca, "cortex-a76", FMLA) * 100) and covered == 0.7
    with pytest.raises(DeviceError, match="could read none of the blocks that ran"):
        cycles_of(mca, ARM_CPUS["cortex-a76"].core, [[unknown]])
    with pytest.raises(DeviceError, match="'cortex-z99' is not a recognized processor"):
        cycles_of(mca, replace(ARM_CPUS["cortex-a76"].core, model="cortex-z99"), [[known]])
    with pytest.raises(DeviceError, match="failed: "):
        cycles_of(replace(mca, mca="/bin/false"), ARM_CPUS["cortex-a76"].core, [[known]])


def test_another_architecture(mca: Mca) -> None:
    core = replace(ARM_CPUS["cortex-a72"].core, triple="x86_64-linux-gnu", model="znver4", features="")
    blocks = [Block(code=VFMADD * 8, instructions=8, runs=10), Block(code=b"\xc3", instructions=1, runs=10)]
    (cycles,), _ = cycles_of(mca, core, [blocks])
    assert cycles.alone / 80 == pytest.approx(4, rel=0.2), "a chain of vfmadd231ps has a latency of 4 on Zen 4"


def test_misses_are_waited_for_one_after_the_other() -> None:
    core = ARM_CPUS["cortex-a72"].core
    near, far = core.caches
    assert core.stall_cycles([10, 0]) == 10 * (far.cycles - near.cycles)
    assert core.stall_cycles([10, 10]) == 10 * (core.memory_cycles - near.cycles)
    assert core.geometry == "32768:2+1048576:16"
    assert any("L1 32 KiB 2-way, L2 1024 KiB 16-way (Raspberry Pi 4" in text for text in assumptions(core))


def test_an_old_llvm_or_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("llvm-mca", "14.0.6"), ("llvm-mc", "14.0.6")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "Debian LLVM version {version}"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/nonexistent")
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    assert find_mca() is None
    assert "sudo apt-get install llvm-19" in missing()
    for name in ("llvm-mca-19", "llvm-mc-19"):
        (tmp_path / name).write_text('#!/bin/sh\necho "Debian LLVM version 19.1.7"\n')
        (tmp_path / name).chmod(0o755)
    found = find_mca()
    assert found is not None and found.version == "llvm-mca 19.1.7"


def test_the_counters_blocks(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    path.write_text("run 0\nblock 7 2 20cc224e20cc224e\n7 5\nrun 1\n7 1\nblock 9 2 20cc224e20cc224e\n9 2\n")
    first, second = read_blocks(path)
    assert first == (Block(code=FMLA * 2, instructions=2, runs=5),)
    # The same code translated twice is one block.
    assert mean([first, second]) == (Block(code=FMLA * 2, instructions=2, runs=4),)
    for text in ("7 5\n", "run 0\n7 5\n", "run 0\nblock 7 2 xx\n", "run 0\nblock 7\n", "run 0\nblock 7 2 20\n7 many\n"):
        path.write_text(text)
        with pytest.raises(DeviceError, match="set the device up again"):
            read_blocks(path)


def reference_misses(caches: list[tuple[int, int]], trace: list[tuple[int, int]]) -> list[int]:
    """The same caches, said in Python."""
    sets: list[dict[int, list[int]]] = [{} for _ in caches]
    misses = [0] * len(caches)
    for address, size in trace:
        for line in range(address // 64, (address + size - 1) // 64 + 1):
            for level, (total, ways) in enumerate(caches):
                lines = sets[level].setdefault(line % (total // 64 // ways), [])
                hit = line in lines
                lines[:] = [line, *(other for other in lines if other != line)][:ways]
                if hit:
                    break
                misses[level] += 1
    return misses


def test_the_caches_against_the_same_in_python(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        message = "no C compiler: sudo apt-get install gcc libc6-dev"
        unavailable(message)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "cache.h"\n'
        "int main(int argc, char **argv) { unsigned long long at; unsigned size;\n"
        "if (argc < 2 || !cache_make(argv[1])) return 2;\n"
        'while (scanf("%llu %u", &at, &size) == 2) cache_touch(at, size);\n'
        'for (int i = 0; i < cache_levels; i++) printf("%llu ", (unsigned long long)caches[i].misses); }\n'
    )
    program = tmp_path / "main"
    subprocess.run([compiler, "-Wall", "-Werror", f"-I{packages.HERE}", tmp_path / "main.c", "-o", program], check=True)
    draw = random.Random(0)
    trace = [
        (draw.choice((0, 1 << 20)) + int(draw.expovariate(1 / 3000)), draw.choice((1, 8, 32))) for _ in range(8000)
    ]
    text = "".join(f"{at} {size}\n" for at, size in trace)
    for caches in ([(1024, 2)], [(1024, 1), (8192, 4)], [(2048, 8), (4096, 16), (65536, 16)]):
        option = "+".join(f"{total}:{ways}" for total, ways in caches)
        said = subprocess.run([program, option], input=text, capture_output=True, text=True, check=True).stdout
        assert list(map(int, said.split())) == reference_misses(caches, trace), option
    for bad in ("", "x", "1024", "1024:0", "1000:3:1", "192:1", "64:2", "+".join(["1024:2"] * 4)):
        assert subprocess.run([program, bad], input="", text=True, check=False).returncode == 2, bad


def test_the_marks_between_blocks_are_read_back(mca: Mca) -> None:
    x86 = replace(ARM_CPUS["cortex-a72"].core, triple="x86_64-linux-gnu")
    # The last instruction of a block may go on on a page that was not read: jmp with two of its four bytes.
    first, second = estimate._disassemble(mca, x86, [VFMADD + b"\xe9\x01\x02", VFMADD])
    assert first[0] == second[0] and len(second) == 1
    for triple in ("aarch64-linux-gnu", "x86_64-linux-gnu"):
        core = replace(ARM_CPUS["cortex-a72"].core, triple=triple)
        assert estimate._disassemble(mca, core, [b"", b""]) == [[], []]
