"""Target files: the shipped ones are sound, a wrong one is reported with every fault at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.backends import targets as backend_targets
from edgevit.errors import TargetError
from edgevit.schema.target import EXPLAINED, list_targets, load_target, missing_flags
from edgevit.util.resources import shipped

TEXT = (shipped("targets") / "x86-64-onnxruntime.toml").read_text()


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT.replace('name = "x86-64-onnxruntime"', 'name = "mine"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", list_targets())
def test_shipped_targets_load_and_explain_their_choices(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert set(EXPLAINED) <= set(target.reasons)


def test_a_saturating_cpu_gets_seven_bit_weights() -> None:
    for name in list_targets():
        target = load_target(name)
        if target.arch == "x86_64" and target.int8 and not any("vnni" in flag for flag in target.requires_flags):
            assert target.weight_bits == 7


def test_a_part_of_a_name_is_enough_to_offer_the_nearest() -> None:
    with pytest.raises(TargetError, match="unknown target 'rpi6'; nearest: rpi4-onnxruntime, .*, rpi5-openvino[.]"):
        load_target("rpi6")


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(TargetError, match="nearest: x86-64-openvino"):
        load_target("x86-64-opnvino")


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ("weight_bits = 8", "weight_bits = 4"),
        ("threads = 1", 'threads = "one"'),
        ("int8 = true", "int8 = true\nspeed = 3"),
    )
    with pytest.raises(TargetError) as caught:
        load_target(path)
    for part in ("weight_bits", "threads", "speed", "3 faults"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", "0"),
        ("threads", "1025"),
        ("threads", "1000000"),
        ("percentile", "49.9"),
        ("smoothing", "1.1"),
        ("min_agreement", "95.0"),
        ("max_top1_drop", "-0.1"),
        ("name", '"../other"'),
        ("name", '""'),
        ("ram_mb", "0"),
        ("flash_mb", "-1.5"),
        ("latency_ms", "0.0"),
        ("drop_points", "101"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, key: str, value: str) -> None:
    lines = TEXT.replace('name = "x86-64-onnxruntime"', 'name = "mine"').splitlines()
    old = next((line for line in lines if line.startswith(f"{key} = ")), "")
    if not old:  # a key that may be absent
        old, value = "threads = 1", f"{value}\nthreads = 1"
    with pytest.raises(TargetError, match=rf"1 fault:\n  - {key}: got"):
        load_target(write(tmp_path, (old, f"{key} = {value}")))


def test_a_file_may_be_called_anything(tmp_path: Path) -> None:
    path = write(tmp_path).rename(tmp_path / "another name.toml")
    assert load_target(path).name == "mine"


def test_budgets_are_read(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, ("threads = 1", "threads = 1\nram_mb = 8\ndrop_points = 0")))
    assert (target.ram_mb, target.flash_mb, target.latency_ms, target.drop_points) == (8.0, None, None, 0.0)


def test_a_choice_without_a_reason_is_a_fault(tmp_path: Path) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith('smoothing = "'))
    with pytest.raises(TargetError, match="missing the reason of 'smoothing'"):
        load_target(write(tmp_path, (line + "\n", "")))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_file_is_a_target_or_one_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(raw)
    with pytest.raises(TargetError):
        load_target(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(tomllib.loads(TEXT))), st.sampled_from(["-1", "[]", "true", '"x"', "nan", "{a = 1}"]))
def test_any_wrong_value_is_one_error_or_a_valid_target(tmp_path: Path, key: str, value: str) -> None:
    lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in TEXT.splitlines()]
    path = tmp_path / "x86-64-onnxruntime.toml"
    path.write_text("\n".join(lines))
    try:
        assert backend_targets.load_target(path).backend == "onnxruntime"
    except TargetError as error:
        assert key in str(error) or "reasons" in str(error)


def test_flags_with_alternatives() -> None:
    target = load_target("x86-64-onnxruntime")
    assert missing_flags(target, {"avx2", "fma"}) == ("avx512_vnni|avx_vnni",)
    assert missing_flags(target, {"avx2", "fma", "avx_vnni"}) == ()
