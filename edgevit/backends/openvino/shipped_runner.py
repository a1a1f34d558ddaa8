"""The part of a bundle's own runner that loads OpenVINO; `edgevit.bundle.runner` is the rest."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.runner import ROOT, Run, lacks_vnni

USED: tuple[str, ...] = ()


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Load the model with OpenVINO; the function takes an image and an effort, gives the manifest's outputs."""
    settings = {**manifest["runtime_settings"], "INFERENCE_NUM_THREADS": threads}
    if manifest["target"]["weight_bits"] == 8 and lacks_vnni():
        # int8 kernels would saturate here: the model is computed as written, in float.
        settings["LP_TRANSFORMS_MODE"] = "NO"
    request = openvino_core().compile_model(str(ROOT / manifest["model"]), "CPU", settings).create_infer_request()

    def run(image: NDArray[np.uint8], effort: float) -> list[NDArray[Any]]:
        feeds = {"image": image}
        if manifest["effort"]:
            feeds["effort"] = np.array(effort, dtype=np.float32)
        results = request.infer(feeds)
        return [results[output["name"]].copy() for output in manifest["outputs"]]

    return run


@functools.cache
def openvino_core() -> Any:
    """One Core for the process: several that end in any order leave signal handlers an unmapped stack (2026.4)."""
    # It would report its use over the network: without this package it takes a stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()
