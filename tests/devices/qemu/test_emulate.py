"""`edgevit profile --device qemu:CPU`: a bundle's own runner on emulated ARM processors, its instructions counted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import cast

import pytest

from edgevit import pipeline
from edgevit.bundle.read import open_bundle
from edgevit.cli import main
from edgevit.devices.machine import find
from edgevit.devices.profile import profile
from edgevit.devices.qemu import emulate, emulator, processes
from edgevit.devices.qemu.emulate import _Found
from edgevit.devices.qemu.emulator import Userland
from edgevit.devices.qemu.estimate import Block, Mca, find_mca, missing
from edgevit.devices.qemu.processes import EmulatedMachine, GuestRuns, RunResult
from edgevit.errors import DeviceError, ParityError, SkipError
from edgevit.frontends.resolve import resolve
from edgevit.images.image_set import load_images
from edgevit.program.program import Program
from edgevit.report.lines import lines
from edgevit.schema.arm_cpus import ARM_CPUS, ArmCpu
from edgevit.schema.measurement import GoldenParity, Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.schema.target import load_target
from edgevit.util import strict_json
from edgevit.util.resources import shipped
from tests.absent import unavailable
from tests.building import RECIPE, image_set
from tests.bundles import rewrite
from tests.report import sample
from tests.tiny import tiny_program

TIMEOUT_S = 600  # CI machines are shared
PHOTOS = shipped("calibration") / "shipped.toml"
PROGRAM = tiny_program(1, gated=True, depth=4, dim=64, heads=2, skip=True)
# Bits of the auxiliary vector's AT_HWCAP and AT_HWCAP2, by their names in /proc/cpuinfo.
HWCAP = {"fp": 0, "asimd": 1, "aes": 3, "crc32": 7, "atomics": 8, "asimdhp": 10, "asimddp": 20, "sve": 22}
HWCAP2 = {"i8mm": 13, "bf16": 14, "sme": 23}


def build(program: Program, folder: Path, target: str, *, int8: bool = True) -> Path:
    lenient = dataclasses.replace(load_target(target), int8=int8, min_agreement=0.0, max_top1_drop=1.0)
    return pipeline.build(program, lenient, image_set(program), folder, recipe=RECIPE).folder


def profile_emulated(bundle: Path, images: Path | None, device: str, *, runs: int, timeout_s: float) -> Measurement:
    return profile(bundle, images, find(device), runs=runs, timeout_s=timeout_s)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PROGRAM, tmp_path_factory.mktemp("int8") / "bundle", "rpi5-onnxruntime")


@pytest.fixture(scope="module")
def measured(device: Userland, int8: Path) -> dict[str, Measurement]:
    return {
        name: profile_emulated(int8, PHOTOS, f"qemu:{name}", runs=4, timeout_s=TIMEOUT_S)
        for name in ("cortex-a72", "cortex-a76", "armv8.6-i8mm")
    }


def products(measurement: Measurement, path: str) -> dict[str, float]:
    assert measurement.emulation
    found = next(p for p in measurement.emulation.instructions if p.path == path)
    return {
        name: count for name, count in found.classes.items() if name in ("multiply_add", "dot", "matrix", "widening")
    }


def test_outputs_are_those_of_the_machine_that_built_the_bundle(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        assert measurement.emulation
        assert {case.path for case in measurement.emulation.golden} == {"all_open", "all_skipped", "real"}
        assert all(case.logit_error <= case.allowed for case in measurement.emulation.golden)


def test_each_processor_takes_its_own_int8_instructions(measured: dict[str, Measurement]) -> None:
    a72, a76, i8mm = (products(m, "all_open") for m in measured.values())
    assert a72["widening"] > 0 and a72["dot"] == a72["matrix"] == 0
    assert a76["dot"] > 0 and a76["matrix"] == 0 and a76["widening"] < a76["dot"] / 10
    assert i8mm["matrix"] > 0
    # One dot product does four multiply-adds of four lanes, one matrix product eight: half as many again.
    assert a72["widening"] > 1.5 * a76["dot"] > 1.5 * i8mm["matrix"]


def test_skipped_branches_execute_nothing(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        assert measurement.emulation
        assert "equal gates execute equal products" in measurement.emulation.skip
        spare = int(measurement.emulation.skip.partition("(")[2].split()[0])
        assert spare >= 2, "the check needs more gate patterns than it has unknowns"
        opened, skipped, real = (products(measurement, path) for path in ("all_open", "all_skipped", "real"))
        assert sum(skipped.values()) < sum(real.values()) < sum(opened.values())
        assert sum(skipped.values()) < 0.2 * sum(opened.values())
        for path in measurement.emulation.instructions:
            assert sum(path.classes.values()) == pytest.approx(path.total)


def test_an_emulator_has_no_times_and_shows_nothing_of_its_host(measured: dict[str, Measurement]) -> None:
    for name, measurement in measured.items():
        machine = measurement.environment
        assert measurement.device == "qemu" and measurement.paths == () and measurement.expected_wall_ms is None
        assert (machine.cpu, machine.arch) == (f"{name}, emulated", "aarch64")
        assert machine.emulated_by and machine.emulated_by.startswith("qemu-aarch64 ")
        assert machine.cpu_part == ARM_CPUS[name].part
        assert machine.load_average_before is machine.memory_total_bytes is machine.frequency_after_mhz is None
        assert measurement.memory is None and measurement.process is None


def test_memory_is_the_runtimes_own_figure(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        assert measurement.emulation and measurement.emulation.arena_peak_bytes and measurement.emulation.arena_bytes
        assert 0.5 < measurement.emulation.arena_peak_bytes / measurement.emulation.arena_bytes <= 1


def test_cycles_are_a_range_that_follows_what_is_executed(measured: dict[str, Measurement]) -> None:
    if find_mca() is None:
        unavailable(missing())
    lower = {}
    for name, measurement in measured.items():
        assert measurement.emulation and measurement.emulation.estimate
        estimate = measurement.emulation.estimate
        paths = {path.path: path for path in estimate.paths}
        assert estimate.covered > 0.9 and ("neoverse" in estimate.core or name == "cortex-a72")
        for path, told in paths.items():
            counted = next(p for p in measurement.emulation.instructions if p.path == path)
            assert 0.1 * counted.total < told.lower_cycles <= told.hits_cycles < told.upper_cycles
            # A line is missed in a farther cache only if it was missed in a nearer one.
            assert sorted(told.misses, reverse=True) == list(told.misses) and told.misses[0] > 0
        assert paths["all_skipped"].lower_cycles < paths["real"].lower_cycles < paths["all_open"].lower_cycles
        lower[name] = paths["all_open"].lower_cycles
    assert lower["cortex-a72"] > lower["cortex-a76"] > lower["armv8.6-i8mm"]


def test_the_heap_is_counted_beside_the_arena(measured: dict[str, Measurement], device: Userland) -> None:
    if device.accountant is None:
        unavailable(device.unaccounted)
    for measurement in measured.values():
        assert measurement.emulation and measurement.emulation.heap and measurement.emulation.arena_peak_bytes
        heap = measurement.emulation.heap
        assert heap.loading_bytes >= heap.loaded_bytes > 0
        # The arena is on the heap, and so is what the runtime itself holds.
        assert max(heap.running_bytes, heap.loading_bytes) > measurement.emulation.arena_peak_bytes


ALLOCATE = """
import ctypes, mmap
libc = ctypes.CDLL(None)
held = libc.edgevit_heap
held.restype = ctypes.c_size_t
for name, *kinds in (("malloc", 1), ("calloc", 2), ("realloc", 2), ("free", 1), ("memalign", 2)):
    getattr(libc, name).argtypes = [ctypes.c_size_t] * kinds[0]
    getattr(libc, name).restype = ctypes.c_void_p
def told(what):
    global before
    now = held(0)
    print(what, now - before, held(1) - start)
    before = now
before = start = held(2)
block = libc.malloc(5_000_000)
told("malloc")
block = libc.realloc(block, 9_000_000)
told("realloc")
libc.free(block)
told("free")
block = libc.calloc(1000, 2000)
told("calloc")
libc.free(block)
block = libc.memalign(4096, 3_000_000)
told("memalign")
libc.free(block)
told("free")
area = mmap.mmap(-1, 20_000_000)
told("mmap")
area.close()
told("munmap")
with open("/proc/self/exe", "rb") as file:
    area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    told("file")
"""


def test_the_accountant_sees_every_kind_of_allocation(device: Userland, tmp_path: Path) -> None:
    if device.accountant is None:
        unavailable(device.unaccounted)
    done = emulator.run(device, ARM_CPUS["cortex-a76"], ["-c", ALLOCATE], folder=tmp_path, heap=True, timeout_s=120)
    said = [(name, int(change), int(most)) for name, change, most in map(str.split, done.stdout.splitlines())]
    expected = [
        ("malloc", 5e6, 5e6),
        ("realloc", 4e6, 9e6),
        ("free", -9e6, 9e6),
        ("calloc", 2e6, 9e6),
        ("memalign", 1e6, 9e6),
        ("free", -3e6, 9e6),
        ("mmap", 20e6, 20e6),
        ("munmap", -20e6, 20e6),
        ("file", 0, 20e6),
    ]
    assert [name for name, _, _ in said] == [name for name, _, _ in expected]
    for (name, change, most), (_, asked, highest) in zip(said, expected, strict=True):
        assert change == pytest.approx(asked, abs=2e5) and most == pytest.approx(highest, abs=2e5), name


def test_without_llvm_there_is_a_report_without_an_estimate(
    device: Userland, measured: dict[str, Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate, "find_mca", lambda: None)
    place = EmulatedMachine(userland=device, cpu=ARM_CPUS["cortex-a76"], folder=Path(), timeout_s=1)
    worked = RunResult(guest=cast(GuestRuns, None), classes=(), blocks=((),), misses=())
    estimate, why = emulate._estimate(place, _Found(requested=(), counted=worked, arena_peak_bytes=None))
    assert estimate is None and "sudo apt-get install llvm-19" in why
    monkeypatch.setattr(emulate, "find_mca", lambda: Mca(mca="/bin/false", mc="/bin/false", version="0"))
    block = Block(code=b"1234", instructions=1, runs=1)
    broken = dataclasses.replace(worked, blocks=((block,),), misses=((1, 1, 1),))
    failed = emulate._estimate(place, _Found(requested=[("real", 0, 0.0)], counted=broken, arena_peak_bytes=None))
    assert failed == (None, "false failed: it said nothing")
    bare = measured["cortex-a76"].emulation
    assert bare is not None
    told = dataclasses.replace(
        measured["cortex-a76"], emulation=dataclasses.replace(bare, estimate=None, unestimated=why, heap=None)
    )
    assert f"cycles were not estimated: {why}" in list(lines(told))


def test_deit_tiny_in_int8(device: Userland, data: Path, tmp_path: Path) -> None:
    """The whole model, its own weights: equal outputs, every run the same products, dot products where MACs are."""
    program = resolve("deit_tiny_patch16_224", weights=data / "deit_tiny_patch16_224.fb_in1k.safetensors")
    images = load_images(PHOTOS, program.spec.image, limit=4)
    lenient = dataclasses.replace(load_target("rpi5-onnxruntime"), min_agreement=0.0, max_top1_drop=1.0)
    folder = pipeline.build(program, lenient, images, tmp_path / "bundle", recipe=RECIPE).folder
    found = profile_emulated(folder, None, "qemu:cortex-a76", runs=1, timeout_s=TIMEOUT_S)
    assert found.emulation and found.emulation.skip.endswith("runs executed equal products")
    with open_bundle(folder) as bundle:
        macs = bundle.manifest.macs.all_open
    counted = products(found, found.emulation.instructions[0].path)
    # 16 multiply-accumulates a dot product: those of the Linears, which are 85 % of all; float does the attention.
    assert 0.8 * macs < 16 * counted["dot"] < 1.1 * macs
    assert counted["multiply_add"] < 0.3 * macs and counted["widening"] == counted["matrix"] == 0


def test_a_processor_without_what_the_target_counts_on_is_a_warning(measured: dict[str, Measurement]) -> None:
    assert any("cortex-a72 lacks asimddp" in warning for warning in measured["cortex-a72"].warnings)
    assert not any("lacks" in warning for warning in measured["cortex-a76"].warnings)


def test_the_command_and_its_report(
    device: Userland, int8: Path, measured: dict[str, Measurement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "a76.json", tmp_path / "a72.json"
    asked = ["profile", str(int8), "--device", "qemu:cortex-a76", "--runs", "2", "-o", str(out)]
    assert main([*asked, "--threads", "2"]) == 21
    assert "an emulated device runs one thread" in capsys.readouterr().err
    assert main([*asked, "--cpus", "0"]) == 2
    capsys.readouterr()
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "cortex-a76 emulated by qemu-aarch64" in said and "M instructions" in said and "skipping: " in said
    assert " ms" not in said and "heap peak" in said
    assert find_mca() is None or "real         estimate, not measured: " in said
    assert read_measurement(out).emulation is not None
    # Other images execute the same products on the same path, to the last one.
    assert products(read_measurement(out), "all_open") == products(measured["cortex-a76"], "all_open")
    shutil.copyfile(out, other)
    assert main(["report", str(int8), str(out), str(other), "--html", str(tmp_path / "page.html")]) == 0
    assert "Executed per image on emulated processors" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["report", str(int8), str(out), str(other)]) == 0
    assert "Executed instructions per image" in capsys.readouterr().out


def test_float_builds_execute_no_int8_products(device: Userland, tmp_path: Path) -> None:
    folder = build(PROGRAM, tmp_path / "bundle", "rpi4-onnxruntime", int8=False)
    found = profile_emulated(folder, None, "qemu:cortex-a72", runs=1, timeout_s=TIMEOUT_S)
    assert not found.warnings
    opened = products(found, "all_open")
    assert opened["multiply_add"] == sum(opened.values()), "int8 in a float build"


def test_openvino_runs_there_in_int8(device: Userland, tmp_path: Path) -> None:
    if "openvino" not in device.runtimes:
        pytest.skip("the emulated device has no OpenVINO: edgevit device setup qemu --runtime openvino")
    folder = build(PROGRAM, tmp_path / "bundle", "rpi5-openvino")
    found = profile_emulated(folder, None, "qemu:cortex-a76", runs=1, timeout_s=TIMEOUT_S)
    assert not found.warnings and found.emulation and found.emulation.arena_peak_bytes is None
    assert products(found, "all_open")["dot"] > 5 * products(found, "all_skipped")["dot"] > 0


def test_another_output_is_a_parity_error() -> None:
    cpu = ARM_CPUS["cortex-a76"]
    good = GoldenParity(path="all_open", logit_error=0.0, allowed=0.5)
    emulate.require_golden([good], cpu)
    off = dataclasses.replace(good, logit_error=2.0)
    with pytest.raises(ParityError, match="golden path all_open gives logits off by 2 on the emulated cortex-a76 "):
        emulate.require_golden([good, off], cpu)
    with pytest.raises(ParityError, match="golden path all_open gives other gates on the emulated cortex-a76 "):
        emulate.require_golden([dataclasses.replace(good, gates_equal=False)], cpu)


def test_answers_are_not_trusted(int8: Path, tmp_path: Path) -> None:
    with open_bundle(int8) as bundle:
        manifest = bundle.manifest
    zeros = {"logits": [0.0] * 10, "gates": [0] * len(manifest.branches)}
    golden = [{"path": case.path, **zeros} for case in manifest.golden]
    machine = strict_json.to_data(sample.ENVIRONMENT)
    good = {"golden": golden, "heap": None, "gates": [[1] * len(manifest.branches)] * 2, "environment": machine}
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(good))
    assert processes.read_answer(path, manifest, 2).gates[0][0] == 1
    wrong: list[object] = [[], None, {}, good | {"golden": golden[:1]}, good | {"gates": [[1]]}, good | {"more": 1}]
    wrong.append(good | {"golden": [golden[0] | {"logits": [0.0]}, *golden[1:]]})
    wrong += [good | {"tokens": tokens} for tokens in ([[9]], [[9], [9, 4]])]
    for answer in wrong:
        path.write_text(json.dumps(answer))
        with pytest.raises(DeviceError, match="gives no answer that can be read"):
            processes.read_answer(path, manifest, 2)
    for raw in ("", "{", "[" * 100_000):
        path.write_text(raw)
        with pytest.raises(DeviceError, match="gives no answer that can be read"):
            processes.read_answer(path, manifest, 2)


def test_a_runner_that_ignores_its_gates_is_found(device: Userland, int8: Path, tmp_path: Path) -> None:
    """The runner of a copy opens every gate where all are to be closed, and says that they were."""
    copy = tmp_path / "bundle"
    shutil.copytree(int8, copy)
    runner = copy / "runner/run.py"
    text = runner.read_text()
    line = "return [np.array(output) for output in session.run(names, feeds)]"
    assert line in text
    opens = 'feeds["effort"] = np.array(1e30, dtype=np.float32) if effort < -1e29 else feeds["effort"]'
    ran = "found = [np.array(output) for output in session.run(names, feeds)]"
    closed = "found[1] = found[1] * 0 if effort < -1e29 else found[1]"
    runner.write_text(text.replace(line, f"{opens}; {ran}; {closed}; return found"))
    resign(copy, "runner/run.py")
    with pytest.raises(SkipError):
        profile_emulated(copy, None, "qemu:cortex-a76", runs=1, timeout_s=TIMEOUT_S)


def resign(folder: Path, name: str) -> None:
    """Write the changed file's hash and size into the manifest, as somebody who changes a bundle would."""
    data = json.loads((folder / "manifest.json").read_text())
    raw = (folder / name).read_bytes()
    entry = next(file for file in data["files"] if file["path"] == name)
    entry |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    # Logits of the all-open run are not those of the other paths: let only the counts tell.
    data["golden_tolerance"] = 1e9
    rewrite(folder, data)


def test_what_cannot_run_there_is_one_error(device: Userland, int8: Path, tmp_path: Path) -> None:
    with open_bundle(int8) as bundle:
        manifest = bundle.manifest
        only = dataclasses.replace(device, runtimes=("onnxruntime",))
        with pytest.raises(DeviceError, match="--runtime openvino"):
            emulate._fit(dataclasses.replace(manifest, backend="openvino"), ARM_CPUS["cortex-a76"], only)
    with pytest.raises(DeviceError, match="did not finish within 0.2 s"):
        profile_emulated(int8, None, "qemu:cortex-a76", runs=1, timeout_s=0.2)
    with pytest.raises(DeviceError, match="no emulated device 'qemu:max'"):
        profile_emulated(int8, None, "qemu:max", runs=1, timeout_s=1)


@pytest.mark.parametrize("cpu", ARM_CPUS.values(), ids=ARM_CPUS)
def test_processors_have_the_features_they_tell(device: Userland, cpu: ArmCpu, tmp_path: Path) -> None:
    program = (
        "import ctypes; read = ctypes.CDLL(None).getauxval; read.restype = ctypes.c_ulong; print(read(16), read(26))"
    )
    first, second = map(int, emulator.run(device, cpu, ["-c", program], folder=tmp_path, timeout_s=60).stdout.split())
    has = {name for names, bits in ((HWCAP, first), (HWCAP2, second)) for name, bit in names.items() if bits >> bit & 1}
    assert has == set(cpu.features) & {*HWCAP, *HWCAP2}
