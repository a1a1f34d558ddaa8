"""The peers that peers.py shows where they are installed: LiteRT, ExecuTorch, ncnn, MNN, and what each took.

pip install -e ".[bench-litert]"        (about 600 MB; install a CPU build of torch first)
pip install -e ".[bench-peers]"         (ExecuTorch, ncnn and MNN; the same, in an environment of its own)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import peer_builds, peer_executorch, peer_litert, peer_mnn, peer_ncnn


@dataclass(frozen=True, kw_only=True)
class Build:
    """One row: the file, what else belongs to it, how it is made of name, weights and folder, how it is loaded."""

    label: str
    int8: bool
    file: str
    make: Callable[[str, Path, Path], None]
    load: Callable[[Path, int], peer_builds.Logits]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One runtime: the extra that installs it, the modules that show that it is here, and what it took to build."""

    runtime: str
    extra: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    took: str
    builds: tuple[Build, ...]

    def installed(self) -> bool:
        """Return whether the runtime and its converters are here."""
        return all(importlib.util.find_spec(module) for module in self.modules)

    def versions(self) -> str:
        """Return the versions of all its packages."""
        return ", ".join(f"{name} {version(name)}" for name in self.packages)


OPTIONAL = (
    Peer(
        runtime="LiteRT",
        extra="bench-litert",
        modules=("ai_edge_litert", "ai_edge_quantizer", "litert_torch"),
        packages=("ai-edge-litert", "litert-torch", "ai-edge-quantizer"),
        took="dynamic int8 by its own converter and quantizer, run by XNNPACK; two steps, no calibration",
        builds=(
            Build(
                label="LiteRT dynamic",
                int8=True,
                file="litert-dynamic.tflite",
                make=peer_litert.litert_dynamic,
                load=peer_litert.litert_runner,
            ),
        ),
    ),
    Peer(
        runtime="ExecuTorch",
        extra="bench-peers",
        modules=("executorch", "torchao"),
        packages=("executorch", "torchao"),
        took="dynamic int8 by torchao's PT2E, lowered to XNNPACK; two exports with attention written out as products, "
        "no calibration, more than a minute of one core and 0.6 GB to lower a DeiT-Ti",
        builds=(
            Build(
                label="ExecuTorch dynamic",
                int8=True,
                file="executorch-dynamic.pte",
                make=peer_executorch.executorch_dynamic,
                load=peer_executorch.executorch_runner,
            ),
        ),
    ),
    Peer(
        runtime="ncnn",
        extra="bench-peers",
        modules=("ncnn", "pnnx"),
        packages=("ncnn", "pnnx"),
        took="float, with activations in float32 or stored as bf16; pnnx converts the ONNX export and timm's own "
        "attention, but into operators that ncnn lacks, so q, k and v are split before the model is traced",
        builds=tuple(
            Build(
                label=f"ncnn {stored}",
                int8=False,
                file="ncnn.param",
                make=peer_ncnn.ncnn_float,
                load=partial(peer_ncnn.ncnn_runner, bf16=stored == "bf16"),
                beside=("ncnn.bin",),
            )
            for stored in ("fp32", "bf16")
        ),
    ),
    Peer(
        runtime="MNN",
        extra="bench-peers",
        modules=("MNN", "_tools"),
        packages=("MNN",),
        took="weights stored in 8 bits, products in float; one step from the ONNX export, no calibration. Its command "
        "runs pip when it starts and sends what it was asked to its makers, so its converter is called directly",
        builds=(
            Build(
                label="MNN, 8-bit weights",
                int8=False,
                file="weights8.mnn",
                make=lambda _name, _weights, path: peer_mnn.mnn_weights(path.with_name(peer_builds.EXPORTED), path),
                load=peer_mnn.mnn_runner,
            ),
        ),
    ),
)


def told(shown: set[str]) -> str:
    """Return what the shown runtimes took, and how to install those that are not there."""
    took = " ".join(f"{peer.runtime}: {peer.took}." for peer in OPTIONAL if peer.runtime in shown)
    absent = [f"{peer.runtime} (`{peer.extra}`)" for peer in OPTIONAL if peer.runtime not in shown]
    missing = f"Not installed and so not shown, with the extra that brings each: {', '.join(absent)}." if absent else ""
    return " ".join(text for text in (took, missing) if text)
