"""The three runtimes side by side: accuracy, time per path, memory, size and compile time of the same models.

    EDGEVIT_DATA=DIR python -m benchmarks.backends --work out/backends -o reports/reference

EDGEVIT_DATA is that of benchmarks/peers.py. What was built, planned, predicted and measured in fresh processes is kept
in --work and used again, so that a run which was stopped goes on; times are always measured anew. After a change of
edgevit's own code take another --work.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

import edgevit
from benchmarks.backends_report import Memory, PathTime, Report, Row, table
from benchmarks.peer_candidates import MODELS
from benchmarks.peers import data_folder
from benchmarks.timing import Times, interleave, ratio, take_turn
from edgevit.backends import MODULES, Runner, Source, backend, tvm
from edgevit.backends import onnxruntime as ort
from edgevit.backends.onnxruntime import arena
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.backends.openvino import memory_bound as ov_bound
from edgevit.backends.tvm import memory_bound as tvm_bound
from edgevit.images.image_set import ImageSet, load_images
from edgevit.measure.environment import environment, snapshot
from edgevit.measure.fresh_process import probe_local
from edgevit.onnx_form.assemble import assemble
from edgevit.pipeline import quantize
from edgevit.program.program import Program, is_program, load_program, save_program
from edgevit.schema.quant_plan import QuantPlan, attention_names
from edgevit.schema.target import Target, load_target
from edgevit.util import strict_json
from edgevit.util.progress import track
from edgevit.util.strict_json import dumps, write_atomic
from edgevit.verify.accuracy import fraction
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED

TARGETS = ("x86-64-avx2-onnxruntime", "x86-64-openvino", "x86-64-v3-tvm")
SHIPPED, T2T = "shipped", "t2t_vit_7"
CASES = (*MODELS, SHIPPED, T2T)
PROGRAM = "program"
# What a runtime loads; the first one names the rest.
FILES = {
    "onnxruntime": ("model.onnx", "model.onnx.data"),
    "openvino": ("model.xml", "model.bin"),
    "tvm": ("model.so", "model.weights", "model.json"),
}
DONE = "built.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with its images; `folder` keeps what was made of it."""

    key: str
    program: Program
    calibration: ImageSet
    evaluation: ImageSet
    folder: Path

    @property
    def generated(self) -> bool:
        """Whether no class that the model names means anything."""
        return self.program.spec.origin.get("weights") == "random"

    @property
    def efforts(self) -> dict[str, float]:
        gated = {"all open": ALL_OPEN, "all skipped": ALL_SKIPPED} if self.program.spec.gated else {}
        return {**gated, "real images": 0.0}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model built for one target: its folder, the model's files, and the CPU time that compiling took."""

    target: Target
    folder: Path
    files: tuple[str, ...]
    compile_cpu_s: float

    @property
    def name(self) -> str:
        return f"{self.target.backend} {'int8' if self.target.int8 else 'float'}"

    @property
    def model(self) -> Path:
        return self.folder / FILES[self.target.backend][0]

    def load(self) -> Runner:
        t = self.target
        return backend(t.backend).load(
            self.folder, threads=1, precision=t.inference_precision, weight_bits=t.weight_bits
        )


def cases(keys: tuple[str, ...], work: Path, calibration: int, images: int) -> Iterator[Case]:
    """The models, one after the other."""
    data = data_folder()
    for key in keys:
        folder = work / key
        folder.mkdir(parents=True, exist_ok=True)
        if not is_program(folder / PROGRAM):
            save_program(_program(key, data), folder / PROGRAM)
        program = load_program(folder / PROGRAM)
        yield Case(
            key=key,
            program=program,
            calibration=load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=calibration),
            evaluation=load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=images, labelled=True),
            folder=folder,
        )


def _program(key: str, data: Path) -> Program:
    if key == SHIPPED:
        return load_program(Path(edgevit.__file__).parent / "programs" / "vit_tiny_gated")
    from edgevit.frontends.from_timm import from_timm
    from edgevit.frontends.t2t import t2t_program

    return t2t_program(T2T) if key == T2T else from_timm(MODELS[key], weights=data / f"{MODELS[key]}.safetensors")


def build(case: Case, target: Target) -> Candidate:
    """Compile for a target, as `edgevit build` does; what it quantizes is not part of the compile time."""
    kind = "int8" if target.int8 else "float"
    more = f"{'-attention' if target.attention == 'int8' else ''}{f'-{target.threads}' if target.threads > 1 else ''}"
    folder = case.folder / f"{target.name}-{kind}{more}"
    done = folder / DONE
    if not done.is_file():
        folder.mkdir(exist_ok=True)
        program, plan = quantized(case, target)
        begin = cpu_s()
        source = Source(program=program, plan=plan, model=assemble(program, plan), target=target)
        files = backend(target.backend).build(source, folder)
        write_atomic(done, dumps({"files": list(files), "compile_cpu_s": cpu_s() - begin}))
    made = json.loads(done.read_text(encoding="utf-8"))
    return Candidate(
        target=target, folder=folder, files=tuple(made["files"]), compile_cpu_s=float(made["compile_cpu_s"])
    )


def quantized(case: Case, target: Target) -> tuple[Program, QuantPlan | None]:
    """The Program to lower and its plan; targets that ask for the same share both."""
    if not target.int8:
        return case.program, None
    asked = "-".join(
        map(str, (target.weight_bits, target.activations, target.range_method, target.percentile, target.smoothing))
    )
    path, rounded = case.folder / f"plan-{asked}.json", case.folder / f"{PROGRAM}-{asked}"
    if not path.is_file():
        program, made = quantize(case.program, target, case.calibration.images)
        save_program(program, rounded, force=True)
        write_atomic(path, dumps(made))
    faults: list[str] = []
    plan = strict_json.from_data(QuantPlan, json.loads(path.read_text(encoding="utf-8")), faults, "plan")
    assert plan is not None, faults
    return load_program(rounded), replace(plan, attentions=_attentions(case, target))


def _attentions(case: Case, target: Target) -> tuple[str, ...]:
    """The branches whose attention is int8, as `edgevit build` decides it."""
    return attention_names(case.program.spec) if target.int8 and target.attention == "int8" else ()


def cpu_s() -> float:
    """CPU time of this process and of those that it started and that ended."""
    # Not os.times: its clock ticks every 10 ms, and a small model compiles in less.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def memory(case: Case, candidate: Candidate) -> Memory:
    """The bound, what runs on every path held, and what fresh processes took; kept beside the model."""
    path = candidate.folder / "memory.json"
    if not path.is_file():
        image = case.calibration.images[:1]
        bound, measured, runner = BOUNDS[candidate.target.backend](case, candidate, image)
        model, target = candidate.model, candidate.target
        probe = probe_local(
            MODULES[target.backend],
            model,
            image,
            tuple(case.efforts.values()),
            threads=1,
            precision=target.inference_precision,
            weight_bits=target.weight_bits,
        )
        process = probe.process
        grown = None if process is None else process.peak_bytes - process.imported_bytes
        found = Memory(bound_bytes=bound, measured_bytes=measured, python_bytes=grown, runner_bytes=runner)
        write_atomic(path, dumps(found))
    faults: list[str] = []
    read = strict_json.from_data(Memory, json.loads(path.read_text(encoding="utf-8")), faults, "memory")
    assert read is not None, faults
    return read


Measured = tuple[int, int | None, int | None]
"""Bound; the peak that it is a bound of, if that can be measured; peak of the C++ runner's process, if there is one."""


def _onnxruntime(case: Case, candidate: Candidate, image: np.ndarray) -> Measured:
    settings = ort.entries(candidate.target.weight_bits)
    peaks = arena.measure_arena(candidate.model, image, settings=settings)
    return ort_bound.bound(candidate.model).bound.arena_bytes, max(path.peak_bytes for path in peaks), None


def _openvino(case: Case, candidate: Candidate, image: np.ndarray) -> Measured:
    return ov_bound.bound(candidate.model).bound.bound_bytes, None, None


def _tvm(case: Case, candidate: Candidate, image: np.ndarray) -> Measured:
    needed = tvm.memory(candidate.folder)
    detail = tvm_bound.bound(arena=needed.arena, io=needed.inputs + needed.outputs, weights=needed.weights)
    touched, processes = [], []
    for effort in case.efforts.values():
        runner = tvm.start(candidate.folder)
        try:
            runner.run(image, effort)
            touched.append(max(runner.told["grown_bytes"], needed.inputs))
            processes.append(runner.told["peak_bytes"])
        finally:
            runner.close()
    return detail.bound.arena_bytes, max(touched), max(processes)


BOUNDS: dict[str, Callable[[Case, Candidate, np.ndarray], Measured]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tvm": _tvm,
}


def predict(case: Case, candidate: Candidate) -> np.ndarray:
    """The class that it names on every evaluation image; kept beside the model."""
    path = candidate.folder / f"predicted-{case.evaluation.digest[:16]}.npy"
    if not path.is_file():
        runner, images = candidate.load(), case.evaluation.images
        classes = [runner.run(i[None])[0].argmax() for i in track(images, f"{case.key}, {candidate.name}")]
        runner.close()
        np.save(path, np.array(classes))
    return np.asarray(np.load(path, allow_pickle=False))


def time_paths(case: Case, candidates: list[Candidate], rounds: int, turn: Path | None) -> dict[str, dict[str, Times]]:
    """CPU time of one thread by path and candidate; all candidates are loaded, and take turns run by run."""
    images = case.evaluation.images[:rounds]
    runners = {candidate.name: candidate.load() for candidate in candidates}

    def step(runner: Runner, effort: float) -> Callable[[int], object]:
        return lambda index: runner.run(images[index : index + 1], effort)

    with take_turn(turn):
        found = {
            path: interleave({name: step(r, effort) for name, r in runners.items()}, len(images), rounds)
            for path, effort in case.efforts.items()
        }
    for runner in runners.values():
        runner.close()
    return found


def rows(case: Case, candidates: list[Candidate], rounds: int, turn: Path | None) -> tuple[Row, ...]:
    """Everything about one model; the first candidate is what the others' times are compared with."""
    predicted = {c.name: predict(case, c) for c in candidates}
    memories = {c.name: memory(case, c) for c in candidates}
    times = time_paths(case, candidates, rounds, turn)
    base, labels = candidates[0].name, case.evaluation.labels
    assert labels is not None
    return tuple(
        Row(
            model=case.key,
            generated=case.generated,
            backend=c.target.backend,
            target=c.target.name,
            int8=c.target.int8,
            attentions=len(_attentions(case, c.target)),
            top1=None if case.generated else fraction(predicted[c.name] == labels),
            agreement=fraction(predicted[c.name] == predicted[base]),
            paths=tuple(
                PathTime(path=path, cpu_median_ms=found[c.name].median_ms, to_base=ratio(found[c.name], found[base]))
                for path, found in times.items()
            ),
            memory=memories[c.name],
            model_bytes=_bytes(c, FILES[c.target.backend]),
            program_bytes=_bytes(c, [name for name in c.files if name.startswith("runner/native/")]),
            compile_cpu_s=c.compile_cpu_s,
        )
        for c in candidates
    )


def _bytes(candidate: Candidate, names: Sequence[str]) -> int:
    return sum((candidate.folder / name).stat().st_size for name in names)


@click.command(epilog="Example: python -m benchmarks.backends --work out/backends -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(CASES), default=CASES)
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True, help="One per runtime.")
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Built models, kept.")
@click.option("--rounds", default=40, show_default=True, type=click.IntRange(6), help="Timed rounds.")
@click.option("--images", default=200, show_default=True, type=click.IntRange(1), help="Labelled images.")
@click.option("--calibration", default=100, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--turn", type=click.Path(path_type=Path, dir_okay=False), help="Lock file to hold while timing.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(
    models: tuple[str, ...],
    targets: tuple[str, ...],
    work: Path,
    rounds: int,
    images: int,
    calibration: int,
    turn: Path | None,
    out: Path,
) -> None:
    """Build every model for every runtime, float and int8, and write backends.json and backends.md."""
    out.mkdir(parents=True, exist_ok=True)
    before, done = snapshot(), tuple[Row, ...]()
    loaded = [load_target(name) for name in targets]
    wanted = [replace(t, int8=False, attention="float32") for t in loaded] + [t for t in loaded if t.int8]
    versions = {k: v for t in loaded for k, v in backend(t.backend).versions().items()}
    for case in cases(models, work, calibration, images):
        done += rows(case, [build(case, target) for target in wanted], rounds, turn)
        machine = environment(
            before,
            snapshot(),
            runtime=", ".join(versions),
            runtime_version=", ".join(f"{k} {v}" for k, v in versions.items()),
            inference_precision="f32",
            threads=1,
        )
        report = Report(
            command=f"python -m benchmarks.backends --rounds {rounds} --images {images} --calibration {calibration}",
            machine=machine,
            rounds=rounds,
            images=images,
            calibration=calibration,
            rows=done,
        )
        write_atomic(out / "backends.json", dumps(report))
        write_atomic(out / "backends.md", table(report))


if __name__ == "__main__":
    main()
