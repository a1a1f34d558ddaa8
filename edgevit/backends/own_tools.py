"""What a first try with the default runtime's own quantizer makes of a float model: what builds are timed against."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def dynamic_int8(plain: Path, written: Path) -> None:
    """Quantize a float ONNX file without calibration: dynamic ranges, weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(str(plain), str(written), per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice on preprocessing from the log; it is of no use here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
