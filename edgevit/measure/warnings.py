"""What spoils the figures of a measurement, read from the machine it was made on: one sentence each, with a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgevit.schema.measurement import Environment, GoldenParity

CLOCK_DROP = 0.95  # below this share of the clock before, the clock fell while measuring
HOT_C = 80.0  # a Raspberry Pi begins to throttle here
RELEASE = re.compile(r"[0-9]+(?:\.(?:post)?[0-9]+)*")  # what follows it in a version tells the commit
IDLE_LOAD = 0.5  # CPUs: so much may others take, or the load average be where a system tells no more


def golden_fault(case: GoldenParity, where: str) -> str:
    """Return what is wrong with a golden output that is not reproduced."""
    what = case.other or f"logits off by {case.logit_error:.3g}"
    return f"golden path {case.path} gives {what} {where} (allowed: equal gates, {case.allowed:.3g})"


def golden_warnings(golden: Sequence[GoldenParity]) -> tuple[str, ...]:
    """Return a sentence for every golden output that is not reproduced: what was measured computes something else."""
    return tuple(
        f"{golden_fault(case, 'here')}: the figures are of another function than the one built"
        for case in golden
        if not case.held
    )


def other_version(runtime: str, verified: str, here: str, where: str) -> str:
    """Return what to say where a device runs another release than the bundle was verified with; else nothing.

    Args:
        runtime: its name.
        verified: the version in the bundle's manifest, perhaps with its commit ('': not recorded).
        here: the version on the device.
        where: the device, for the sentence.
    """
    releases = [RELEASE.match(version) for version in (verified, here)]
    if None in releases or releases[0][0] == releases[1][0]:  # type: ignore[index]
        return ""
    return f"{where} runs {runtime} {here}, the bundle was verified, its memory proven, with {verified}"


def measurement_warnings(machine: Environment) -> tuple[str, ...]:
    """Return every reason to trust these figures less, worst first; empty if none is seen."""
    if machine.emulated_by is not None:
        return (
            f"this machine is emulated by {machine.emulated_by}: times are withheld, because an emulator's are no "
            "device's; memory of the process is the emulator's and is withheld too",
        )
    usable = len(machine.cpus) if machine.cpus is not None else machine.cores
    before, after = machine.frequency_before_mhz, machine.frequency_after_mhz
    temperatures = (machine.temperature_before_c, machine.temperature_after_c)
    hottest = max((t for t in temperatures if t is not None), default=0.0)
    load, others = machine.load_average_before or 0.0, machine.others_cpus
    busy = f"{others or 0:g}"
    checks = (
        (bool(machine.throttling), f"the clock was held down ({', '.join(machine.throttling or ())}): cool or feed it"),
        (
            before is not None and after is not None and after < CLOCK_DROP * before,
            f"the clock fell from {before or 0:g} to {after or 0:g} MHz while measuring",
        ),
        (hottest >= HOT_C, f"{hottest:g} °C: too hot to keep its clock; cool it and measure again"),
        (
            machine.governor not in (None, "performance"),
            f"the governor is {machine.governor}, so the clock follows the load; set it to performance",
        ),
        (
            others is not None and others > IDLE_LOAD,
            f"other programs kept {busy} CPU{'s' * (busy != '1')} busy while measuring; results may be noisy: "
            "close them and measure again",
        ),
        # The load average still counts what ended a minute ago, such as the build: only where nothing else is told.
        (
            others is None and load > IDLE_LOAD,
            f"system was busy (load average {load:g} before measuring); results may be noisy: "
            "close other programs and run again",
        ),
        (machine.threads > usable, f"{machine.threads} threads share {usable} CPU{'s' * (usable > 1)}"),
    )
    return tuple(sentence for holds, sentence in checks if holds)
