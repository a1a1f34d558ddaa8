"""The models that the peers' own tools make of a timm ViT: torch.onnx export, ONNX Runtime's quantizers, NNCF.

Each recipe is the tool's best known one for a ViT, not its defaults. Peers take float32 NCHW images that are
normalised already; edgevit's builds take uint8 pixels and normalise inside the model.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgevit.program.spec import ImageSpec

OPSET = 20  # the first with Gelu as one operator
INPUT = "x"
EXPORTED = "exported.onnx"
Logits = Callable[[np.ndarray], np.ndarray]


def normalise(images: np.ndarray, image: ImageSpec) -> np.ndarray:
    """Pixels uint8 `[n, height, width, 3]` to what timm feeds, float32 `[n, 3, height, width]`."""
    mean, std = (np.array(v, dtype=np.float32) for v in (image.mean, image.std))
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))


def timm_model(name: str, weights: Path) -> Any:
    """Return the timm model of that name with these weights, ready to be traced or exported."""
    from safetensors.torch import load_file

    from edgevit.frontends.timm_import import timm

    model: Any = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    return model


def export(name: str, weights: Path, path: Path) -> None:
    """torch.onnx's export of the timm model, the way torch documents it (dynamo)."""
    import torch

    model = timm_model(name, weights)
    height, width = model.patch_embed.img_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, height, width),),
            path,
            input_names=[INPUT],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    exported = onnx.load(path)
    # The exporter states shapes of initialisers, over which ONNX Runtime's quantizers stumble when they transpose them.
    constants = {tensor.name for tensor in exported.graph.initializer}
    kept = [value for value in exported.graph.value_info if value.name not in constants]
    del exported.graph.value_info[:]
    exported.graph.value_info.extend(kept)
    onnx.save(exported, path)


def ort_static(exported: Path, path: Path, images: np.ndarray, *, reduce_range: bool) -> None:
    """ONNX Runtime's static QDQ, U8S8 per channel: Linears made Gemm first, attention products and outputs float."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as temporary:
        gemm = Path(temporary) / "gemm.onnx"
        _to_gemm(exported, gemm)
        with _quiet():
            quantize_static(
                str(gemm),
                str(path),
                _reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Gemm"],
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
            )


def ort_dynamic(exported: Path, path: Path, *, reduce_range: bool) -> None:
    """ONNX Runtime's dynamic quantization, per channel: ranges are found at run time, no calibration."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(exported),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def nncf_static(
    exported: Path, path: Path, images: np.ndarray, *, half_range: bool = False, preset: str = "MIXED"
) -> None:
    """NNCF's post-training quantization for transformers, SmoothQuant on, of the model as OpenVINO reads it.

    Preset PERFORMANCE has symmetric activations, MIXED asymmetric ones where they pay. `half_range` is its
    `overflow_fix`: 7-bit weights, for CPUs whose int8 kernels saturate. By default they keep 8 bits but in the first
    layer.
    """
    import openvino

    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix

        halved = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
        quantized = nncf.quantize(
            openvino.Core().read_model(exported),
            nncf.Dataset(list(images), lambda image: image[None]),
            preset=nncf.QuantizationPreset[preset],
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            advanced_parameters=halved if half_range else None,
        )
    openvino.save_model(quantized, path, compress_to_fp16=False)


def ort_runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised image `[1, 3, height, width]` to logits `[1, classes]`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {INPUT: image})[0]


def openvino_runner(
    path: Path, threads: int, precision: str | None, *, emulated: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """The same in OpenVINO; `precision` None leaves the choice to OpenVINO.

    `emulated` keeps quantized values but computes with them in float: what an int8 kernel that cannot saturate gives.
    """
    request = _compiled(path, threads, precision, emulated=emulated).create_infer_request()
    return lambda image: np.array(request.infer([image])[0])


def openvino_precision(path: Path, precision: str | None) -> str:
    """The precision that OpenVINO takes on this CPU when given that hint; without bf16 instructions it is f32."""
    return str(_compiled(path, 1, precision).get_property("INFERENCE_PRECISION_HINT"))


def _compiled(path: Path, threads: int, precision: str | None, *, emulated: bool = False) -> Any:
    import openvino

    configuration: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    if emulated:
        configuration["LP_TRANSFORMS_MODE"] = "NO"
    if precision:
        configuration["INFERENCE_PRECISION_HINT"] = precision
    return openvino.Core().compile_model(path, "CPU", configuration)


def _to_gemm(exported: Path, path: Path) -> None:
    """Let ONNX Runtime join MatMul and Add into Gemm; quantizing MatMuls would leave the Linears float at run time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])


def _reader(images: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray]] = iter({INPUT: image[None]} for image in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    return Reader()


class _quiet:
    """Keep the tools' remarks (pre-processing advice, progress bars of their own) out of the benchmark's output."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)
