from __future__ import annotations

from typing import Any

import pytest

from edgevit.measure.warnings import measurement_warnings, other_version
from edgevit.schema.measurement import Environment

QUIET: dict[str, Any] = {
    "cpu": "Board",
    "arch": "aarch64",
    "isa": (),
    "cores": 4,
    "governor": "performance",
    "frequency_before_mhz": 1800.0,
    "frequency_after_mhz": 1800.0,
    "temperature_before_c": 50.0,
    "temperature_after_c": 60.0,
    "load_average_before": 0.1,
    "load_average_after": 1.0,
    "memory_total_bytes": None,
    "system": "Linux",
    "python": "3.11",
    "runtime": "onnxruntime",
    "runtime_version": "1",
    "inference_precision": "f32",
    "threads": 2,
    "throttling": (),
}


def machine(**changes: Any) -> Environment:
    return Environment(**{**QUIET, **changes})


def test_a_quiet_board_raises_none_and_so_does_one_that_tells_nothing() -> None:
    assert measurement_warnings(machine()) == ()
    silent = dict.fromkeys([key for key in QUIET if key.startswith(("frequency", "temperature", "load"))])
    assert measurement_warnings(machine(**silent, governor=None, throttling=None)) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"throttling": ("firmware: throttled",)}, "the clock was held down (firmware: throttled)"),
        ({"frequency_after_mhz": 1500.0}, "the clock fell from 1800 to 1500 MHz"),
        ({"temperature_after_c": 82.0}, "82 °C: too hot"),
        ({"governor": "ondemand"}, "the governor is ondemand"),
        ({"load_average_before": 1.2}, "load average 1.2 before measuring"),
        ({"others_cpus": 0.8}, "other programs kept 0.8 CPUs busy while measuring"),
        ({"others_cpus": 1.0}, "other programs kept 1 CPU busy while measuring"),
        ({"cpus": (3,)}, "2 threads share 1 CPU"),
        ({"threads": 8}, "8 threads share 4 CPUs"),
    ],
)
def test_each_doubt_is_told_alone(changes: dict[str, Any], said: str) -> None:
    (told,) = measurement_warnings(machine(**changes))
    assert said in told


def test_of_an_emulated_machine_only_that_is_told() -> None:
    (told,) = measurement_warnings(machine(emulated_by="qemu-aarch64", governor="ondemand", load_average_before=9.0))
    assert told.startswith("this machine is emulated by qemu-aarch64: times are withheld")


def test_the_load_of_a_minute_ago_counts_only_where_nothing_newer_is_told() -> None:
    assert measurement_warnings(machine(load_average_before=9.0, others_cpus=0.02)) == ()
    assert len(measurement_warnings(machine(load_average_before=9.0))) == 1


@pytest.mark.parametrize(
    ("verified", "here", "another"),
    [
        ("1.31.0", "1.32.0", True),
        ("1.31.0", "1.31.0", False),
        ("2026.4.0-123-abc-releases", "2026.4.0", False),
        ("0.27.0.post1", "0.27.0", True),
        ("", "1.32.0", False),
    ],
)
def test_another_release_of_the_runtime_is_said(verified: str, here: str, another: bool) -> None:
    told = other_version("onnxruntime", verified, here, "this board")
    assert told == (
        f"this board runs onnxruntime {here}, the bundle was verified, its memory proven, with {verified}"
        if another
        else ""
    )
