"""Import timm where torchvision's compiled operators do not fit the installed torch.

torchvision's published wheel is linked against the CUDA build of torch. Beside a CPU build its operators do not load,
and `import torchvision` (which timm needs) then dies while it describes two of them. edgevit and timm's ViTs use none
of these operators, so naming the two is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from edgevit.errors import RuntimeMissingError

_NAMED: list[Any] = []  # a torch Library forgets its operators when it is collected


def load_timm() -> Any:
    """Return the module `timm`. Raises RuntimeMissingError when torch, torchvision or timm is not installed."""
    missing = [name for name in ("torch", "torchvision", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"This needs {', '.join(missing)}, which is not installed. Install it with: pip install 'edgevit[train]'"
        )
    _name_missing_operators()
    return importlib.import_module("timm")


def _name_missing_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if _NAMED or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _NAMED.append(library)
