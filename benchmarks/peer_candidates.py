"""The peers' candidates of benchmarks/peers.py: what they build in the work folder, and how each is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import peer_builds
from benchmarks.cpu_class import VNNI
from benchmarks.peer_attention import ort_attention
from benchmarks.peer_builds import Logits
from benchmarks.peer_optional import OPTIONAL
from benchmarks.peer_report import FLOAT
from edgevit.images.image_set import ImageSet
from edgevit.measure.environment import cpu_flags
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.util.progress import track

MODELS = {"deit_tiny": "deit_tiny_patch16_224.fb_in1k", "vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k"}
BY_HAND = "ORT by hand"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One build: its files, how to load it with a number of threads, and which images it takes.

    `arithmetic` is what its logits depend on beside the files: candidates with the same of both need one evaluation.
    `exact` loads a peer's with int8 computed in float, where this CPU's kernels saturate; edgevit loads its own so.
    `share`: what merging tokens was to leave of the MACs; None for a dense model.
    """

    name: str
    runtime: str
    own: bool
    int8: bool
    files: tuple[Path, ...]
    load: Callable[[int], Logits]
    arithmetic: str
    exact: Callable[[int], Logits] | None = None
    plan: QuantPlan | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model with its images; `fed` holds what each kind of candidate takes, peers normalised floats."""

    key: str
    program: Program
    calibration: np.ndarray
    evaluation: ImageSet
    folder: Path


def peer_candidates(case: Case, data: Path) -> list[Candidate]:
    """Build what the work folder lacks; it must be of the same tools and the same calibration images."""
    name, folder = MODELS[case.key], case.folder
    exported = folder / peer_builds.EXPORTED
    fed = peer_builds.normalise(case.calibration, case.program.spec.image)
    builds: dict[str, Callable[[Path], None]] = {
        peer_builds.EXPORTED: lambda path: peer_builds.export(name, data / f"{name}.safetensors", path),
        "static.onnx": lambda path: peer_builds.ort_static(exported, path, fed, reduce_range=False),
        "static7.onnx": lambda path: peer_builds.ort_static(exported, path, fed, reduce_range=True),
        "dynamic.onnx": lambda path: peer_builds.ort_dynamic(exported, path, reduce_range=False),
        "dynamic7.onnx": lambda path: peer_builds.ort_dynamic(exported, path, reduce_range=True),
        "attention-dynamic.onnx": lambda path: ort_attention(case.program, path),
        "nncf.xml": lambda path: peer_builds.nncf_static(exported, path, fed),
        "nncf-performance.xml": lambda path: peer_builds.nncf_static(exported, path, fed, preset="PERFORMANCE"),
        "nncf7.xml": lambda path: peer_builds.nncf_static(exported, path, fed, half_range=True),
    }
    for file, make in track(builds.items(), "Building the peers' models"):
        if not (folder / file).exists():
            make(folder / file)
    ort = {
        FLOAT: peer_builds.EXPORTED,
        "ORT static": "static.onnx",
        "ORT static, reduce_range": "static7.onnx",
        "ORT dynamic": "dynamic.onnx",
        "ORT dynamic, reduce_range": "dynamic7.onnx",
        BY_HAND: "attention-dynamic.onnx",
    }
    openvino: dict[str, tuple[str, str | None]] = {
        "OV f32": (peer_builds.EXPORTED, "f32"),
        "OV default": (peer_builds.EXPORTED, None),
        "NNCF, f32 hint": ("nncf.xml", "f32"),
        "NNCF, overflow_fix, f32 hint": ("nncf7.xml", "f32"),
        "NNCF, bf16 hint": ("nncf.xml", "bf16"),
        "NNCF, PERFORMANCE, bf16 hint": ("nncf-performance.xml", "bf16"),
    }
    return [
        *(_ort_peer(label, folder / file) for label, file in ort.items()),
        *(_openvino_peer(label, folder / file, precision) for label, (file, precision) in openvino.items()),
        *_optional_peers(case, data),
    ]


def _optional_peers(case: Case, data: Path) -> list[Candidate]:
    """Build what the peers of benchmarks/peer_optional.py lack, of those that are installed."""
    name, found = MODELS[case.key], []
    for peer in OPTIONAL:
        for build in peer.builds if peer.installed() else ():
            path = case.folder / build.file
            if not path.exists():
                build.make(name, data / f"{name}.safetensors", path)
            found.append(
                Candidate(
                    name=build.label,
                    runtime=peer.runtime,
                    own=False,
                    int8=build.int8,
                    files=(path, *(path.with_name(file) for file in build.beside)),
                    load=partial(build.load, path),
                    arithmetic=f"{build.label}, {peer.versions()}",
                )
            )
    return found


def _ort_peer(label: str, path: Path) -> Candidate:
    return Candidate(
        name=label,
        runtime="ORT",
        own=False,
        int8=label != FLOAT,
        files=(path,),
        load=lambda threads: peer_builds.ort_runner(path, threads),
        arithmetic="ORT",
    )


def _openvino_peer(label: str, path: Path, precision: str | None) -> Candidate:
    weights = (path.with_suffix(".bin"),) if path.suffix == ".xml" else ()
    return Candidate(
        name=label,
        runtime="OV",
        own=False,
        int8=path.suffix == ".xml",
        files=(path, *weights),
        load=lambda threads: peer_builds.openvino_runner(path, threads, precision),
        arithmetic=f"OV {peer_builds.openvino_precision(path, precision)}",
        exact=_emulation(path) if path.suffix == ".xml" and precision == "f32" else None,
    )


def _emulation(path: Path) -> Callable[[int], Logits] | None:
    if VNNI & cpu_flags():
        return None
    return lambda threads: peer_builds.openvino_runner(path, threads, "f32", emulated=True)
