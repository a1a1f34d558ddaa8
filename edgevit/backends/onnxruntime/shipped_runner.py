"""The part of a bundle's own runner that loads ONNX Runtime; `edgevit.bundle.runner` is the rest."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.runner import MISSING, ROOT, Run, escaped, lacks_vnni

RUNTIME = "onnxruntime"
USED: tuple[str, ...] = ()


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Load the model with ONNX Runtime; the function takes an image and an effort, gives the manifest's outputs."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it would report its use over the network
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised too; a graph's names are not printed as they are
    for key, value in manifest["runtime_settings"].items():
        options.add_session_config_entry(key, value)
    if manifest["target"]["weight_bits"] == 8 and lacks_vnni():
        # The int8 kernels would saturate here: slower ones are exact.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # The memory bound in the manifest holds for these settings; they cost no time.
    options.enable_mem_reuse = options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    arena = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": 1 << 20}
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        ),
        onnxruntime.OrtArenaCfg({**arena, "max_dead_bytes_per_chunk": 256}),
    )
    path = str(ROOT / manifest["model"])
    if path.encode(errors="replace").decode() != path:
        print(escaped(f"{path}: ONNX Runtime opens no path that is not UTF-8; move the bundle"), file=sys.stderr)
        sys.exit(MISSING)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    names = [output["name"] for output in manifest["outputs"]]

    def run(image: NDArray[np.uint8], effort: float) -> list[NDArray[Any]]:
        feeds = {"image": image}
        if manifest["effort"]:
            feeds["effort"] = np.array(effort, dtype=np.float32)
        # Copied: an output that is held takes room in the arena while the next run goes on.
        return [np.array(output) for output in session.run(names, feeds)]

    return run
