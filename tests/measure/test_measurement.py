"""What a Measurement is made of, whichever machine answered."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

import edgevit
from edgevit.measure.branch_times import Trace
from edgevit.measure.fresh_process import Probe
from edgevit.measure.measurement import (
    Times,
    make_measurement,
    mean_of_image_medians,
    path_efforts,
    timed_efforts,
    timing,
)
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED, Bundle
from edgevit.schema.measurement import Emulation, GoldenParity, ImagesUsed
from edgevit.schema.points import OperatingPoint, PointName
from tests.bundles import sample_manifest
from tests.report.sample import ENVIRONMENT, SHA
from tests.tiny import tiny_program

BUNDLE = Bundle(folder=Path(), manifest=sample_manifest(tiny_program(gated=True)), sha256=SHA)
USED = ImagesUsed(count=2, digest="0", golden=False)
GATES = np.array([[1, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
OFF = GoldenParity(path="real", logit_error=2.0, allowed=0.5)
NOISY = dataclasses.replace(ENVIRONMENT, load_average_before=9.0)


def times() -> Times:
    rows = [(10.0 + index, 5.0 + index, index % 2, GATES[index % 2]) for index in range(4)]
    return Times(
        images=2,
        paths={"real": timing(rows), "all_open": timing(rows)},
        trace=Trace(open_ms={"b00_mhsa": 1.5}, skipped_ms={}, other_ms=0.5, source="traced", memory=None),
        probe=Probe(process=None, trace=None, load_ms=3.0, first_run_ms=4.0),
    )


def test_a_machine_with_times_tells_them_all() -> None:
    made = make_measurement(BUNDLE, NOISY, USED, GATES, device="loop", golden=(OFF,), times=times(), warnings=("and",))
    assert (made.bundle_sha256, made.device, made.images.timed) == (SHA, "loop", 2)
    assert [(path.path, path.wall.runs, path.wall.median_ms) for path in made.paths] == [
        ("all_open", 4, 11.5),
        ("real", 4, 11.5),
    ]
    assert (made.expected_wall_ms, made.expected_cpu_ms, made.unattributed_time_ms) == (11.5, 6.5, 0.5)
    assert (made.load_ms, made.first_run_ms) == (3.0, 4.0)
    assert [branch.open_rate for branch in made.branches] == [0.5, 0.0, 1.0, 1.0]
    assert [branch.open_time_ms for branch in made.branches] == [1.5, None, None, None]
    first, second, last = made.warnings
    assert first.startswith("golden path real gives logits off by 2 here (allowed: equal gates, 0.5)")
    assert "load average 9" in second and last == "and"


def point(name: PointName, effort: float) -> OperatingPoint:
    return OperatingPoint(effort=effort, name=name, macs=1.0, worst_macs=1, branches=1.0, images=1)


STEERED = dataclasses.replace(
    BUNDLE,
    manifest=dataclasses.replace(
        BUNDLE.manifest, points=(point("fast", -2.0), point("balanced", 0.0), point("full", EFFORT_ALL_OPEN))
    ),
)


def test_points_that_are_a_path_are_not_timed_twice() -> None:
    assert timed_efforts(STEERED.manifest) == {
        "all_open": EFFORT_ALL_OPEN,
        "all_skipped": EFFORT_ALL_SKIPPED,
        "real": 0.0,
        "fast": -2.0,
    }
    assert timed_efforts(STEERED.manifest, -2.0)["real"] == -2.0 and "fast" not in timed_efforts(STEERED.manifest, 1.0)


def test_a_point_tells_the_expected_and_the_worst_image() -> None:
    quick = timing([(2.0 + 4 * (index % 2), 1.0 + index % 2, index % 2, GATES[index % 2]) for index in range(4)])
    known = dataclasses.replace(times(), paths={**times().paths, "fast": quick})
    made = make_measurement(STEERED, NOISY, USED, GATES, times=known, tokens=[[3], [4]])
    assert [each.name for each in made.points] == ["fast", "balanced", "full"]
    fast, balanced, _ = made.points
    assert (fast.effort, fast.expected_wall_ms, fast.worst_wall_ms) == (-2.0, 4.0, 6.0)
    assert (fast.expected_cpu_ms, fast.worst_cpu_ms, fast.branches_open, fast.p95_cpu_ms) == (1.5, 2.0, 2.5, None)
    assert balanced.expected_wall_ms == made.expected_wall_ms == 11.5
    assert made.effort == 0.0 and made.tokens == ((3,), (4,))


def test_another_effort_is_that_of_the_real_path_and_times_no_point() -> None:
    made = make_measurement(STEERED, NOISY, USED, GATES, times=times(), effort=-2.0)
    assert made.effort == -2.0 and made.points == ()
    assert {path.path: path.effort for path in made.paths} == {"all_open": EFFORT_ALL_OPEN, "real": -2.0}


def test_one_without_has_none_of_them_and_an_emulated_processor_warns_for_itself() -> None:
    without = make_measurement(BUNDLE, NOISY, USED, GATES)
    assert (without.paths, without.load_ms, without.images.timed, len(without.warnings)) == ((), None, 0, 1)
    assert {branch.time_source for branch in without.branches} == {"withheld"}
    emulation = Emulation(emulator="qemu", cpu="cortex-a72", golden=())
    told = make_measurement(BUNDLE, NOISY, USED, GATES, emulation=emulation, warnings=("this",))
    assert told.warnings == ("this",) and told.emulation == emulation


def test_expected_time_weighs_images_not_runs() -> None:
    # Image 0 was run three times, image 1 once: each counts once.
    assert mean_of_image_medians((1.0, 1.0, 10.0, 5.0), (0, 0, 0, 1)) == 3.0


def test_a_bundle_without_gates_has_one_path() -> None:
    assert path_efforts(sample_manifest(tiny_program())) == {"real": 0.0}
    assert list(path_efforts(BUNDLE.manifest)) == ["all_open", "all_skipped", "real"]


def test_measurements_are_made_and_golden_outputs_compared_in_one_place() -> None:
    package = Path(edgevit.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    makers = [name for name, text in sources.items() if re.search(r"\bMeasurement\(\n? +", text)]
    assert makers == ["measure/measurement.py"]
    parities = [name for name, text in sources.items() if "GoldenParity(" in text]
    assert parities == ["bundle/read.py"]
