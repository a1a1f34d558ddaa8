"""edgevit: compile Vision Transformers into small, input-adaptive, quantized bundles for edge devices."""

import os
import sys

__version__ = "0.1.0"

# Nobody is called: ONNX Runtime and OpenVINO report their use over the network, and keep a number of this machine in
# the home folder. Here, because it must be said before either is imported; processes that are started inherit the one
# and import this package for the other.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it fails; OpenVINO takes a stub
