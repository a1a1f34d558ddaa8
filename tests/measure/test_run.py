from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.bundle.read import open_bundle
from edgevit.devices.local import measure_here
from edgevit.devices.profile import profile
from edgevit.devices.request import ProfileRequest, prepare_images
from edgevit.errors import OperatingPointError
from edgevit.measure.run import TURN, WARM_UP_ROUNDS, taking_turns, time_paths, timed_order
from edgevit.schema.manifest import EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement, write_measurement
from edgevit.schema.points import OperatingPoint
from edgevit.util import strict_json
from tests.bundles import FixedRunner, sample_bundle
from tests.tiny import tiny_images, tiny_spec

IMAGES = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(tiny_images(tiny_spec(), IMAGES, seed=1)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path
) -> tuple[Path, Measurement]:
    # Large enough that a branch costs clearly more than the If around it.
    size: dict[str, Any] = {"depth": 2, "dim": 64, "heads": 2, "hidden": 256, "image": (64, 64), "patch": 4}
    folder = sample_bundle(tmp_path_factory.mktemp("bundle") / "tiny", runtime=request.param, **size)
    return folder, profile(folder, photos, runs=8)


def test_every_path_is_timed_and_takes_the_branches_it_names(measured: tuple[Path, Measurement]) -> None:
    _, m = measured
    assert [p.path for p in m.paths] == ["all_open", "all_skipped", "real"]
    assert [p.effort for p in m.paths] == [EFFORT_ALL_OPEN, EFFORT_ALL_SKIPPED, 0.0]
    opened = {p.path: p.branches_open for p in m.paths}
    assert opened["all_open"] == 4 and opened["all_skipped"] == 0 and 0 <= opened["real"] <= 4
    assert all(p.wall.runs == p.cpu.runs == 8 and len(p.wall.samples_ms) == 8 for p in m.paths)
    assert all(p.cpu.p90_ms is None for p in m.paths)
    cpu = {p.path: p.cpu.median_ms for p in m.paths}
    assert cpu["all_skipped"] < cpu["all_open"]


def test_branches_have_open_rates_and_times(measured: tuple[Path, Measurement]) -> None:
    folder, m = measured
    with open_bundle(folder) as bundle:
        assert [b.name for b in m.branches] == [b.name for b in bundle.manifest.branches]
    assert (m.images.count, m.images.timed) == (IMAGES, 2)  # 8 runs: 2 images are run 4 times each
    assert all(round(b.open_rate * IMAGES, 6).is_integer() for b in m.branches)
    assert all(b.open_time_ms is not None and b.skipped_time_ms is not None for b in m.branches)
    assert sum(b.skipped_time_ms or 0 for b in m.branches) < sum(b.open_time_ms or 0 for b in m.branches)


def test_the_fresh_process_tells_its_memory_and_times(measured: tuple[Path, Measurement]) -> None:
    _, m = measured
    assert m.process is not None
    assert 10_000_000 < m.process.imported_bytes < m.process.loaded_bytes <= m.process.peak_bytes < 400_000_000
    assert (m.load_ms or 0) > 0 and (m.first_run_ms or 0) > 0
    assert m.memory is not None
    assert m.memory.of == ("runtime" if m.environment.runtime == "onnxruntime" else "process")
    assert max(p.bytes for p in m.memory.points) <= m.memory.peak_bytes
    if m.memory.of == "runtime":
        # The weights of this model as float32 are about 0.4 MB: a second session in the arena would double them.
        assert m.memory.points[0].bytes < 1_000_000


def test_a_measurement_names_the_bundle_and_survives_its_file(
    measured: tuple[Path, Measurement], tmp_path: Path
) -> None:
    folder, m = measured
    with open_bundle(folder) as bundle:
        assert m.bundle_sha256 == bundle.sha256
    write_measurement(m, tmp_path / "m.json")
    assert read_measurement(tmp_path / "m.json") == m
    assert json.loads((tmp_path / "m.json").read_text())["schema"] == 1


def test_tokens_of_every_image_and_the_times_of_points_are_told(tmp_path: Path, photos: Path) -> None:
    cost: dict[str, Any] = {"macs": 1.0, "worst_macs": 1, "branches": 4.0, "images": 1}
    points = (
        OperatingPoint(effort=-16.0, name="fastest", **cost),
        OperatingPoint(effort=0.0, name="balanced", **cost),
    )
    merging: dict[str, Any] = {"gated": False, "image": (64, 64), "tokens": "1:0-24@0.2"}
    folder = sample_bundle(tmp_path / "tiny", changes={"points": points}, **merging)
    m = profile(folder, photos, runs=4)
    assert len(m.tokens) == m.images.count and all(40 <= left <= 64 for (left,) in m.tokens)
    assert [(point.name, point.effort) for point in m.points] == [("fastest", -16.0), ("balanced", 0.0)]
    assert all(0 < point.expected_wall_ms <= point.worst_wall_ms for point in m.points)
    asked = profile(folder, photos, runs=2, effort="fastest")
    assert (asked.effort, asked.points) == (-16.0, ()) and set(asked.tokens) == {(47,)}
    for wrong, said in (("warp", "no operating point 'warp': it has fastest, balanced"), ("nan", "must be a number")):
        with pytest.raises(OperatingPointError, match=said):
            profile(folder, photos, effort=wrong)
    still = sample_bundle(tmp_path / "still", gated=False)
    for effort in ("fast", 1.0):
        with pytest.raises(OperatingPointError, match="it runs the same for every image; omit the effort"):
            profile(still, photos, effort=effort)


def test_golden_inputs_stand_in_for_images(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "tiny", gated=False)
    m = profile(folder, None, runs=2)
    assert m.images.golden and m.images.count == 1
    assert [p.path for p in m.paths] == ["real"]
    assert [b.open_rate for b in m.branches] == [1.0] * 4
    assert all(b.open_time_ms and b.skipped_time_ms is None for b in m.branches)


def test_an_emulated_machine_has_no_times(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sample_bundle(tmp_path / "tiny")
    for user in ("run", "environment"):
        monkeypatch.setattr(f"edgevit.measure.{user}.emulator", lambda *_: "qemu-aarch64")
    with open_bundle(folder) as bundle:
        pixels, used = prepare_images(bundle, 2)
        m = measure_here(ProfileRequest(bundle=bundle, images=pixels, used=used, runs=2))
    assert m.environment.emulated_by == "qemu-aarch64" and "times are withheld" in m.warnings[0]
    assert (m.paths, m.process, m.memory, m.images.timed) == ((), None, None, 0)
    times = [m.expected_wall_ms, m.expected_cpu_ms, m.load_ms, m.first_run_ms, m.unattributed_time_ms]
    assert times == [None] * 5
    assert [b.open_time_ms for b in m.branches] == [b.skipped_time_ms for b in m.branches] == [None] * 4
    assert {b.open_rate for b in m.branches} <= {0.0, 1.0}  # one golden input
    write_measurement(m, tmp_path / "m.json")
    assert read_measurement(tmp_path / "m.json") == m


def test_a_measurement_from_before_boards_is_still_read(measured: tuple[Path, Measurement], tmp_path: Path) -> None:
    _, m = measured
    data = strict_json.to_data(m)
    del data["warnings"]
    for key in ("cpu_part", "cpus", "throttling", "emulated_by"):
        del data["environment"][key]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert read_measurement(tmp_path / "old.json").paths == m.paths


def test_paths_are_interleaved_and_images_take_turns() -> None:
    calls: list[tuple[int, float]] = []

    class Recorder(FixedRunner):
        def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            calls.append((int(image[0, 0, 0, 0]), effort))
            return super().run(image, effort)

    images = np.arange(2, dtype=np.uint8).repeat(12).reshape(2, 2, 2, 3)
    runner = Recorder(np.zeros((1, 3), np.float32), np.ones(4, np.uint8))
    timings = time_paths(runner, images, {"all_open": 1.0, "real": 0.0}, runs=3)
    assert calls[6:] == [(0, 1.0), (0, 0.0), (1, 1.0), (1, 0.0), (0, 1.0), (0, 0.0)]
    assert timings["real"].image == (0, 1, 0)
    assert all(t.cpu_ms[0] >= 0 and len(t.gates) == 3 for t in timings.values())


def test_other_models_take_turns_and_what_they_leave_in_caches_does_not_count() -> None:
    paths, others, runs = ("all_open", "real"), ("float", "int8"), 2 * TURN + 3
    alone = timed_order(5, paths, runs)
    assert taking_turns(alone, 2, ()) == alone
    order = taking_turns(alone, 2, others)
    for name in (*paths, *others):
        counted = [index for model, index, counts in order if model == name and counts]
        assert counted == [round_ % 5 for round_ in range(runs)]
    kinds = ["paths" if model in paths else model for model, _, _ in order]
    begins = [i for i in range(1, len(order)) if kinds[i] != kinds[i - 1]]
    assert len(begins) > 6 and not any(order[i][2] for i in begins)
    assert not any(counts for _, _, counts in order[: WARM_UP_ROUNDS * 4])


def test_a_model_beside_a_bundle_is_timed_as_often() -> None:
    runner = FixedRunner(np.zeros((1, 2), np.float32), np.ones(4, np.uint8))
    images = tiny_images(tiny_spec(), 2)
    timed = time_paths(runner, images, {"real": 0.0}, 20, beside={"dense float": runner})
    assert {name: len(timing.wall_ms) for name, timing in timed.items()} == {"real": 20, "dense float": 20}
