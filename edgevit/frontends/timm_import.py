"""timm, importable whatever torchvision wheel is installed: `from edgevit.frontends.timm_import import timm`.

A torchvision wheel whose compiled library does not load beside the installed torch (the default wheel next to a CPU
build of torch) fails on import, because it registers shapes for `torchvision::nms` without the operator. Declaring the
two operators, without kernels, is enough: timm uses neither.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from edgevit.errors import RuntimeMissingError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library's definitions live as long as the object.
_declared: list[Any] = []


def compiled_ops_load(folder: Path) -> bool:
    """Return whether torchvision's own compiled operators load from its package folder."""
    for file in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return True
    return False


def declare_ops() -> None:
    """Declare torchvision's operators where its compiled library does not; calling it again does nothing."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeMissingError(
            "torchvision is not installed; install the training extra: pip install 'edgevit[train]'"
        )
    if _declared or compiled_ops_load(Path(spec.submodule_search_locations[0])):
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _import_timm() -> Any:
    declare_ops()
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f"{error.name} is not installed; install the training extra: pip install 'edgevit[train]'"
        ) from error


# Any: timm's packages do not declare what they export.
timm: Any = _import_timm()
