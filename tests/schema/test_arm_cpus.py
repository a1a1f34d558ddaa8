"""The table of ARM processors: held against what else in the project names one."""

from __future__ import annotations

import pytest

from edgevit.schema.arm_cpus import ARM_CPUS, cpu_of_part, least_cpu
from edgevit.schema.target import list_targets, load_target, missing_flags


@pytest.mark.parametrize(
    ("flags", "name"),
    [((), "cortex-a53"), (("asimddp",), "cortex-a76"), (("asimddp", "i8mm"), "armv8.6-i8mm"), (("sve",), None)],
)
def test_the_least_cpu_that_has_what_is_needed(flags: tuple[str, ...], name: str | None) -> None:
    found = least_cpu(flags)
    assert (found.name if found else None) == name


def test_features_only_grow_along_the_table() -> None:
    features = [set(cpu.features) for cpu in ARM_CPUS.values()]
    assert all(fewer <= more for fewer, more in zip(features, features[1:], strict=False))
    assert all(set(cpu.code_flags or ()) <= set(cpu.features) for cpu in ARM_CPUS.values())


def test_no_processor_is_whatever_qemu_can_do() -> None:
    assert all(cpu.qemu != "max" for cpu in ARM_CPUS.values()), "qemu 7.2 computes SME wrongly"


def test_a_part_number_is_one_product() -> None:
    parts = ("0xd03", "0xd08", "0xd0b", "0xd4b", None)
    assert [cpu_of_part(part) for part in parts] == ["cortex-a53", "cortex-a72", "cortex-a76", None, None]


@pytest.mark.parametrize("name", [name for name in list_targets() if load_target(name).arch == "aarch64"])
def test_every_target_for_arm_is_one_of_a_processor_of_the_table(name: str) -> None:
    target = load_target(name)
    assert any(not missing_flags(target, cpu.features) for cpu in ARM_CPUS.values())
    assert target.cpu in (None, "generic", *ARM_CPUS)
