"""edgevit: compile Vision Transformers into small, input-adaptive, quantized bundles for edge devices."""

__version__ = "0.1.0"
