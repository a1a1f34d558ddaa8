"""A Program as an ONNX graph."""
