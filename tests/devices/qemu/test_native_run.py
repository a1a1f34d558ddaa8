"""`edgevit profile TVM-BUNDLE --device qemu:CPU`: its C++ runner on emulated processors, instructions counted."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit import pipeline
from edgevit.backends import Answer
from edgevit.backends.tvm.run.process import ProcessRunner
from edgevit.backends.tvm.run.runner import read_manifest
from edgevit.bundle.read import open_bundle
from edgevit.cli import main
from edgevit.devices import confined
from edgevit.devices.machine import find
from edgevit.devices.profile import profile
from edgevit.devices.qemu import emulate, emulator, native_run, userland
from edgevit.devices.qemu.emulator import Userland
from edgevit.devices.qemu.native_run import require_fit
from edgevit.devices.qemu.processes import EmulatedMachine, work
from edgevit.errors import BundleError, DeviceError, RuntimeMissingError, SkipError
from edgevit.schema.arm_cpus import ARM_CPUS
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.building import RECIPE, image_set
from tests.bundles import rehash, sample_bundle
from tests.devices.qemu.test_emulate import products, profile_emulated
from tests.tiny import tiny_program

import_or_skip()
TIMEOUT_S = 600  # CI machines are shared
PHOTOS = shipped("calibration") / "shipped.toml"
PROGRAM = tiny_program(1, gated=True, depth=2, dim=64, heads=2, skip=True)
CPU = "cortex-a72"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm") / "bundle"
    try:
        return pipeline.build(PROGRAM, load_target(f"{CPU}-tvm"), image_set(PROGRAM), folder, recipe=RECIPE).folder
    except RuntimeMissingError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def measured(device: Userland, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    out = tmp_path_factory.mktemp("measured") / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        # No Python and no runtime is needed there.
        patch.setattr(userland, "installed", lambda: dataclasses.replace(device, runtimes=(), python="none"))
        asked = ["profile", str(bundle), "--device", f"qemu:{CPU}", "--images", str(PHOTOS), "--runs", "2"]
        assert main([*asked, "-o", str(out)]) == 0
    return read_measurement(out)


def test_outputs_are_those_of_the_build(measured: Measurement) -> None:
    assert measured.emulation and not measured.warnings
    assert {case.path for case in measured.emulation.golden} == {"all_open", "all_skipped", "real"}
    assert all(case.logit_error == 0 for case in measured.emulation.golden)
    assert measured.device == "qemu" and measured.paths == () and measured.process is None
    machine = measured.environment
    assert (machine.cpu, machine.arch, machine.runtime) == (f"{CPU}, emulated", "aarch64", "tvm")
    assert machine.cpu_part == ARM_CPUS[CPU].part and machine.isa == ("asimd",) and machine.load_average_before is None


def test_skipped_branches_execute_nothing(measured: Measurement) -> None:
    assert measured.emulation and "equal gates execute equal products" in measured.emulation.skip
    opened, skipped, real = (products(measured, path) for path in ("all_open", "all_skipped", "real"))
    assert sum(skipped.values()) <= sum(real.values()) <= sum(opened.values())
    assert sum(skipped.values()) < 0.3 * sum(opened.values())
    assert opened["dot"] == opened["matrix"] == 0 < opened["multiply_add"]


def test_a_run_holds_what_it_is_given_and_no_more_than_the_bound(measured: Measurement, bundle: Path) -> None:
    emulation = measured.emulation
    if emulation is None or emulation.heap is None:
        pytest.skip(emulation.unaccounted if emulation else "not emulated")
    with open_bundle(bundle) as opened:
        arena = 4 * read_manifest(opened.folder / "model.json").arena
    assert emulation.arena_peak_bytes and emulation.arena_bytes
    assert arena < emulation.arena_peak_bytes <= emulation.arena_bytes
    assert emulation.heap.running_bytes >= arena


def test_a_runner_that_ignores_its_gates_is_found(
    device: Userland, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ProcessRunner.answer

    def opens(self: ProcessRunner, image: np.ndarray, effort: float = 0.0) -> Answer:
        closed = effort < -1e29
        logits, gates, tokens = right(self, image, 1e30 if closed else effort)
        return Answer(logits, gates * (not closed), tokens)

    monkeypatch.setattr(ProcessRunner, "answer", opens)
    monkeypatch.setattr(emulate, "require_golden", lambda *_: None)  # these differ too: let only the counts tell
    with pytest.raises(SkipError):
        profile_emulated(bundle, None, f"qemu:{CPU}", runs=1, timeout_s=TIMEOUT_S)


def test_what_cannot_run_there_is_one_error(device: Userland, bundle: Path, tmp_path: Path) -> None:
    def run(path: Path, **changes: Any) -> Measurement:
        return profile(path, None, find(f"qemu:{CPU}"), **{"runs": 1, "timeout_s": TIMEOUT_S, **changes})

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    for target, said in (
        (
            dataclasses.replace(manifest.target, arch="x86_64"),
            f"machine code for x86_64, {CPU} is an aarch64 processor",
        ),
        (
            dataclasses.replace(manifest.target, requires_flags=("asimddp",)),
            f"{CPU} lacks asimddp, which the machine code for {CPU}-tvm uses",
        ),
    ):
        with pytest.raises(DeviceError, match=said):
            require_fit(dataclasses.replace(manifest, target=target), ARM_CPUS[CPU])
    with pytest.raises(DeviceError, match=r"emulated cortex-a72 did not finish within 0.01 s"):
        run(bundle, timeout_s=0.01)
    with pytest.raises(DeviceError, match="an emulated device runs one thread"):
        run(bundle, threads=2)
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    (broken / "model.weights").write_bytes(b"short")
    rehash(broken)
    with pytest.raises(DeviceError, match="does not run on the emulated cortex-a72: .* has 5 bytes, model.json says"):
        run(broken)


def test_the_emulator_holds_no_more_memory_than_the_bundle_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], *_: object) -> None:
        started.append(command)
        raise BundleError("enough")

    monkeypatch.setattr(native_run, "start_runner", start)
    monkeypatch.setattr(emulator, "started", lambda *_, **__: nullcontext(["qemu"]))
    here = EmulatedMachine(
        userland=Userland(
            folder=tmp_path,
            emulator=tmp_path,
            emulator_version="",
            libraries=None,
            python="none",
            plugin=None,
            uncounted="",
            accountant=None,
            unaccounted="",
            runtimes=(),
            packages={},
        ),
        cpu=ARM_CPUS[CPU],
        folder=tmp_path,
        timeout_s=60,
        memory_bytes=900 << 20,
    )
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    with open_bundle(sample_bundle(tmp_path / "bundle")) as found:
        opened = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, backend="tvm"))
        for golden in (True, False):
            if not golden:
                monkeypatch.setattr(native_run, "golden", lambda *_, **__: ())
            with pytest.raises(BundleError, match="enough"):
                work(here, opened, pixels, [(None, 0, 0.0)], more=0, caches="")
    assert started == [confined.held_command(["qemu"], 900 << 20)] * 2
