"""A small real bundle for tests: a tiny random Program, lowered, compiled, written as the build writes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, desk, onnx_backend
from edgevit.bundle.write import GoldenRun, write_bundle
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import gate_macs, head_macs, macs_by_branch, stem_macs, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.schema.claims import Claim, CoverageFigures, ParityFigures, ParityResult, PathParity, Tolerance
from edgevit.schema.manifest import (
    EFFORT_ALL_OPEN,
    EFFORT_ALL_SKIPPED,
    AccuracyRow,
    BranchFacts,
    EffortContract,
    InputContract,
    Macs,
    Manifest,
    OutputContract,
    PathName,
    Sizes,
)
from edgevit.schema.memory_bound import MemoryBound
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import load_target
from edgevit.util import strict_json
from tests.tiny import tiny_images, tiny_program

MODEL = {"onnxruntime": "model/model.onnx", "openvino": "model/model.xml"}
RECIPE = Recipe(
    model="tiny",
    weights_sha256="1" * 64,
    prune=0.0,
    gate=0.7,
    seed=0,
    calibration="photos",
    calibration_images=4,
    calibration_sha256="0" * 64,
)
PARITY = ParityFigures(
    against_float=ParityResult(
        paths=(
            PathParity(
                path="real",
                effort=0.0,
                images=4,
                compared=4,
                open=3.0,
                flips=0,
                max_abs_error=2.1e-6,
                error=2.1e-6,
                cosine=1.0,
                deviation=1.0,
            ),
        ),
        tolerance=Tolerance(max_error=1e-3, min_cosine=0.99999, gate_margin=1e-3, max_flips=0.05),
    )
)
PATHS: tuple[tuple[PathName, float], ...] = (
    ("all_open", EFFORT_ALL_OPEN),
    ("all_skipped", EFFORT_ALL_SKIPPED),
    ("real", 0.0),
)


def sample_bundle(
    folder: Path,
    *,
    runtime: str = "onnxruntime",
    labels: Sequence[str] = (),
    force: bool = False,
    files: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a bundle of a tiny Program to `folder` and return `folder`; `changes` replaces manifest fields."""
    program = tiny_program(**{"gated": True, **options})
    with tempfile.TemporaryDirectory() as staging:
        model = Path(staging)
        onnx_backend(runtime).compile(assemble(program), model)
        runner = onnx_backend(runtime).load(model)
        image = tiny_images(program.spec, 1)
        golden = []
        for path, effort in PATHS:
            logits, gates, left = runner.answer(image, effort=effort)
            tokens = left if program.spec.adaptive else None
            golden.append(GoldenRun(path=path, effort=effort, image=image, logits=logits, gates=gates, tokens=tokens))
        runner.close()
        manifest = sample_manifest(program, runtime, sum(f.stat().st_size for f in model.iterdir()))
        settings = onnx_backend(runtime).settings(model, weight_bits=manifest.target.weight_bits)
        manifest = dataclasses.replace(manifest, **{"runtime_settings": settings, **(changes or {})})
        every = {"model": model, "runner/run.py": desk(runtime).runner_source(), **(files or {})}
        write_bundle(folder, manifest, every, golden, labels=labels, guide=desk(runtime).guide(), force=force)
    return folder


def rewrite(folder: Path, data: dict[str, Any]) -> None:
    """Put a changed manifest into a bundle, sealed anew, as whoever changes it on purpose would."""
    (folder / "manifest.json").write_text(strict_json.seal({**data, "sha256": ""}), encoding="utf-8")


def rehash(folder: Path) -> None:
    """Write hashes and sizes of changed files into the manifest."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file in data["files"]:
        raw = (folder / file["path"]).read_bytes()
        file |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    rewrite(folder, data)


def sample_manifest(program: Program, runtime: str = "onnxruntime", model_bytes: int = 100_000) -> Manifest:
    """The manifest of a tiny Program; its MACs are counted, its memory and accuracy figures are made up."""
    spec = program.spec
    parameters = sum(array.size for array in program.weights.values())
    fixed = stem_macs(spec) + head_macs(spec) + gate_macs(spec)
    return Manifest(
        name="tiny",
        backend=runtime,
        target=dataclasses.replace(load_target(f"x86-64-{runtime}"), inference_precision="f32", requires_flags=()),
        recipe=RECIPE,
        tools={"edgevit": "0.1.0", **onnx_backend(runtime).versions()},
        origin={"source": "generated", "licence": "Apache-2.0"},
        input=InputContract(shape=(1, spec.image.height, spec.image.width, 3), preprocessing=spec.image),
        effort=EffortContract() if spec.steered else None,
        outputs=(
            OutputContract(name="logits", dtype="float32", shape=(1, spec.head.classes), meaning="class scores"),
            OutputContract(name="gates", dtype="uint8", shape=(len(spec.branches),), meaning="1 = the branch ran"),
            *([_tokens_output(spec)] if spec.adaptive else []),
        ),
        model=MODEL[runtime],
        models={"onnx" if runtime == "onnxruntime" else "ir": MODEL[runtime]},
        runtime_settings={},
        branches=sample_branches(spec),
        sizes=Sizes(
            model_bytes=model_bytes, float_bytes=4 * parameters, parameters=parameters, dense_parameters=parameters
        ),
        macs=Macs(
            dense=total_macs(spec),
            all_open=total_macs(spec),
            all_skipped=fixed,
            expected=fixed + 0.75 * sum(macs_by_branch(spec)),
        ),
        bound=MemoryBound(
            bound_bytes=420_000,
            weights_bytes=260_000,
            activations_bytes=130_000,
            scratch_bytes=20_000,
            io_bytes=10_000,
            measured_peak_bytes=400_000,
            proven=runtime == "onnxruntime",
            covers="weights and arena over every gate path",
        ),
        claims=(
            Claim(name="parity", held=True, summary="4 forms agree within 1e-4", figures=PARITY),
            Claim(name="coverage", held=True, summary="8 of 8 Gemm int8", figures=CoverageFigures(int8=8, planned=8)),
        ),
        accuracy=(
            AccuracyRow(model="original", metric="top1", value=0.751, low=0.723, high=0.777, images=1000),
            AccuracyRow(model="bundle", metric="top1", value=0.744, low=0.716, high=0.770, images=1000),
            AccuracyRow(model="bundle", metric="agreement", value=0.958, low=0.944, high=0.969, images=1000),
        ),
        golden_tolerance=1e-3,
    )


def _tokens_output(spec: ProgramSpec) -> OutputContract:
    shape = (len(spec.merges),)
    return OutputContract(name="tokens", dtype="int32", shape=shape, meaning="patch tokens left", kind="tokens")


def sample_branches(spec: ProgramSpec) -> tuple[BranchFacts, ...]:
    return tuple(
        BranchFacts(
            name=branch.name,
            kind=branch.kind,
            units=branch.units,
            units_total=branch.units_total,
            macs=macs,
            dense_macs=macs,
            gated=branch.gate is not None,
            threshold=branch.gate.threshold if branch.gate else None,
            open_rate=0.75 if branch.gate else None,
            memory_bytes=40_000 + 5_000 * index,
            int8_linears=2,
            linears=2,
        )
        for index, (branch, macs) in enumerate(zip(spec.branches, macs_by_branch(spec), strict=True))
    )


class FixedRunner:
    """A runner that gives back what it was told to, for breaking verifiers."""

    def __init__(self, logits: np.ndarray, gates: np.ndarray) -> None:
        self.logits, self.gates = logits, gates

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self.logits, self.gates

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        return Answer(self.logits, self.gates, NO_TOKENS)

    def close(self) -> None:
        pass


def includes(now: Any, then: Any) -> bool:
    """Whether data say all that older data said: keys may have been added, at any depth, but nothing else."""
    if isinstance(then, Mapping):
        return isinstance(now, Mapping) and all(key in now and includes(now[key], then[key]) for key in then)
    if isinstance(then, list):
        return isinstance(now, list) and len(now) == len(then) and all(map(includes, now, then))
    return bool(now == then)
