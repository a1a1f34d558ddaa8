from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import DeviceError
from edgevit.measure.environment import (
    Snapshot,
    cpu_flags,
    cpu_name,
    emulator,
    environment,
    pin_to_cpus,
    snapshot,
)
from edgevit.measure.warnings import measurement_warnings


def fake(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_an_x86_machine(tmp_path: Path) -> None:
    root = fake(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Great CPU 9000\ncpu MHz\t\t: 2000.0\n"
            "flags\t\t: fpu avx2 fma avx512_vnni\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.0\n",
            "proc/loadavg": "0.50 0.40 0.30 1/100 1234\n",
            "proc/meminfo": "MemTotal:       1024 kB\nMemFree: 1 kB\n",
            "etc/os-release": 'NAME="X"\nPRETTY_NAME="Some Linux 1"\n',
            "sys/class/thermal/thermal_zone0/temp": "41500\n",
            "sys/class/thermal/thermal_zone1/temp": "61000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )
    before = snapshot(root)
    assert (before.frequency_mhz, before.temperature_c, before.load_average) == (2500.0, 61.0, 0.5)
    found = environment(
        before,
        before,
        runtime="onnxruntime",
        runtime_version="1",
        inference_precision="f32",
        threads=2,
        root=root,
    )
    assert (found.cpu, found.isa, found.governor) == ("Great CPU 9000", ("avx2", "fma", "avx512_vnni"), "powersave")
    assert found.memory_total_bytes == 1024 * 1024
    assert found.system.startswith("Some Linux 1, ")


def test_an_arm_board_tells_its_name_and_features_its_own_way(tmp_path: Path) -> None:
    root = fake(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nFeatures\t: fp asimd asimddp\nCPU part : 0xd0b\n",
            "sys/firmware/devicetree/base/model": "Some Board Model 5\0",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2500000\n",
        },
    )
    assert cpu_name(root) == "Some Board Model 5"
    assert "asimddp" in cpu_flags(root)
    assert snapshot(root).frequency_mhz == 2000.0


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    empty = snapshot(tmp_path)
    assert (empty.frequency_mhz, empty.temperature_c, empty.load_average) == (None, None, None)
    assert cpu_flags(tmp_path) == frozenset()


def test_an_emulator_shows_in_the_place_it_does_not_fake(tmp_path: Path) -> None:
    assert emulator(tmp_path) is None
    link = tmp_path / "proc/thread-self/exe"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/bin/python3.11")
    assert emulator(tmp_path) is None
    link.unlink()
    link.symlink_to("/usr/libexec/qemu-aarch64")
    assert emulator(tmp_path) == "qemu-aarch64"


def test_a_machine_tells_its_part_its_cpus_and_what_throttled_it(tmp_path: Path) -> None:
    fake(tmp_path, {"proc/cpuinfo": "Features : fp asimd\nCPU part : 0xd0b\n"})
    nothing = Snapshot(frequency_mhz=None, temperature_c=None, load_average=None)
    settings: dict[str, Any] = {"runtime": "onnxruntime", "runtime_version": "1", "inference_precision": "f32"}
    quiet = environment(nothing, nothing, **settings, threads=1, root=tmp_path)
    assert (quiet.cpu_part, quiet.cpus, quiet.throttling, quiet.emulated_by) == ("0xd0b", None, None, None)
    before = Snapshot(
        frequency_mhz=None, temperature_c=None, load_average=None, throttling=("capped",), throttle_count=3
    )
    after = Snapshot(
        frequency_mhz=None, temperature_c=None, load_average=None, throttling=("capped", "hot"), throttle_count=5
    )
    hot = environment(before, after, **settings, threads=1, cpus=[2, 3], root=tmp_path)
    assert hot.cpus == (2, 3)
    assert hot.throttling == ("capped", "hot", "throttled for heat 2 times")


def test_a_process_is_held_to_cpus_for_a_while_and_only_to_those_there_are() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with pin_to_cpus([one]):
        assert os.sched_getaffinity(0) == {one}
    with pin_to_cpus(None):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(DeviceError, match=r"CPUs 4095 were asked for; this machine offers "), pin_to_cpus([4095]):
        pass
    assert os.sched_getaffinity(0) == before


def stat(root: Path, ticks: str) -> Path:
    return fake(root, {"proc/stat": f"cpu  {ticks}\ncpu0 1 2 3 4\nintr 5\n", "proc/loadavg": "7.00 5.00 3.00 1/2 3\n"})


def others(before: Snapshot, after: Snapshot, root: Path) -> float | None:
    told: dict[str, Any] = {"runtime": "r", "runtime_version": "1", "inference_precision": "f32", "threads": 1}
    return environment(before, after, root=root, **told).others_cpus


def test_what_other_programs_do_is_counted_between_two_moments(tmp_path: Path) -> None:
    """User, nice, system, idle, waiting, two kinds of interrupts, stolen; guests are counted in user already."""
    before = snapshot(stat(tmp_path, "1000 100 200 9000 800 10 20 5 700 0"))
    after = snapshot(stat(tmp_path, "1150 110 220 9999 999 11 21 13 999 0"))
    assert before.busy_s == 13.35 and after.busy_s == 15.25
    second = dataclasses.replace(after, at_s=before.at_s + 1, own_s=before.own_s + 0.9)
    assert others(before, second, tmp_path) == 1.0  # 1.9 CPU seconds, 0.9 of them our own
    alone = dataclasses.replace(second, own_s=before.own_s + 1.91)
    assert others(before, alone, tmp_path) == 0.0
    near = dataclasses.replace(second, at_s=before.at_s + 0.05)
    assert others(before, near, tmp_path) is None


def test_a_load_that_has_ended_is_no_longer_there(tmp_path: Path) -> None:
    root = stat(tmp_path, "1000 100 200 9000 800 10 20 5 0 0")
    before = snapshot(root)
    after = snapshot(root, since=before)  # waits until there is enough to tell
    assert after.at_s - before.at_s >= 0.2
    machine = environment(
        before, after, root=root, runtime="r", runtime_version="1", inference_precision="f32", threads=1
    )
    assert machine.load_average_before == 7.0 and machine.others_cpus == 0.0
    assert not [doubt for doubt in measurement_warnings(machine) if "other programs" in doubt]


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="this system does not tell what its CPUs do")
def test_our_own_work_is_not_that_of_others() -> None:
    before = snapshot()
    assert before.busy_s is not None
    while snapshot().at_s < before.at_s + 0.3:
        sum(range(10_000))
    after = snapshot(since=before)
    assert after.own_s - before.own_s > 0.1 and after.busy_s is not None and after.busy_s > before.busy_s


def test_a_system_that_tells_nothing_of_its_cpus(tmp_path: Path) -> None:
    nothing = snapshot(fake(tmp_path, {"proc/stat": "cpu nonsense\n"}))
    assert nothing.busy_s is None
    later = snapshot(tmp_path, since=nothing)
    assert others(nothing, dataclasses.replace(later, at_s=nothing.at_s + 9), tmp_path) is None
