"""Torch files without running what they hold: tensors and containers are read, every other object becomes a stand-in.

torch's own restricted reader does the reading. Types that training scripts store beside the tensors (arguments, numpy
scalars, paths, configurations) are replaced by `StandIn` before anything is built, so nothing of them is imported.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from edgevit.errors import WeightsError
from edgevit.program.intake import check_file, check_zip, is_zip
from edgevit.util.limits import PICKLE_STEPS, LimitError

# First parts of the names of types that hold settings and figures, never a network.
BESIDE = (
    "argparse",
    "collections",
    "datetime",
    "easydict",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "ml_collections",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "types",
    "typing",
    "uuid",
    "yacs",
)
# Of builtins only plain types: a file that names `eval` or `getattr` is refused, although it would not be called.
_PLAIN = tuple(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int", "list", "str", "tuple"))
_DICTS = ("collections.defaultdict", "AttributeDict", "EasyDict")
_PICKLES = 5  # of a file in torch's form before 1.6: magic number, protocol, machine, content, storage keys
ADVICE = "save model.state_dict() alone, best as .safetensors"


class StandIn:
    """An object of the file that was not built; `kind` of a subclass is the name of the type it would have had."""

    kind = ""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DictStandIn(StandIn):
    """A kind of dict, whose items a pickle sets one by one: it becomes a plain one."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}


def read_torch(path: Path) -> Any:
    """Return the content of a torch file: containers, numbers, text, tensors, and `StandIn`s for what is none of them.

    Raises:
        WeightsError: TorchScript or an exported program, a whole module, other objects, or a damaged file.
    """
    kinds = check_torch(path)
    try:
        # torch warns of what it will not read for ever; whatever is not understood becomes an error below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_stand_ins(kinds)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, kinds)) from error
    except Exception as error:  # torch raises many kinds on damaged files: EOFError, RuntimeError, KeyError, ...
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"{path} is not a readable torch checkpoint ({first}); get the file again") from error
    if isinstance(content, StandIn):
        raise WeightsError(whole_module(path, content.kind))
    return content


def whole_module(where: object, kind: str) -> str:
    """Return the message for a network that was stored as an object."""
    return (
        f"{where} holds an object of type {kind}, not named tensors, and code is never run from a weights file; "
        f"where that class can be imported, load it and {ADVICE}"
    )


def check_torch(path: Path) -> tuple[str, ...]:
    """Look at a torch file before torch does: sizes, what it is, and the kinds of objects that it names.

    Raises:
        WeightsError: no regular file, beyond a limit, a program, or something that would be built without limit.
    """
    try:
        check_file(path)
        if is_zip(path):
            check_zip(path)
            _refuse_archives(path)
        kinds = _kinds(path)
    except (OSError, LimitError) as error:
        raise WeightsError(f"{path} is not a readable torch checkpoint ({error}); get the file again") from error
    if "builtins.bytearray" in kinds:  # which torch would make of any size that the file names
        raise WeightsError(_refusal(path, kinds))
    return kinds


def _refuse_archives(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program, not named tensors; in torch, load it and {ADVICE}")
    if any("/models/" in name and name.endswith(".json") for name in names):
        raise WeightsError(f"{path} is a program of torch.export, not named tensors; in torch, {ADVICE}")


def _kinds(path: Path) -> tuple[str, ...]:
    """Return full names of all types and functions that the file's pickles name, in order; nothing is imported."""
    found: dict[str, None] = {}
    try:
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                raw = [archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")]
                streams = [io.BytesIO(content) for content in raw]
            for stream in streams:
                _note_kinds(stream, found)
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    _note_kinds(file, found)
    except LimitError:
        raise
    except Exception:  # pickletools raises many kinds on what is no pickle; torch tells what is damaged
        pass
    return tuple(found)


def _note_kinds(stream: Any, found: dict[str, None]) -> None:
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step > PICKLE_STEPS.value:
            raise LimitError(f"it has more than {PICKLE_STEPS.value} steps, allowed for {PICKLE_STEPS.said}")
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")  # "module name"; pickles of protocol 2 say __builtin__
            found[re.sub(r"^__builtin__\.", "builtins.", name)] = None


def _stand_ins(kinds: tuple[str, ...]) -> list[Any]:
    return [
        (type("StandIn", (DictStandIn if kind.endswith(_DICTS) else StandIn,), {"kind": kind}), kind)
        for kind in kinds
        if _is_beside(kind)
    ]


def _is_beside(kind: str) -> bool:
    return kind.split(".")[0] in BESIDE or kind in _PLAIN


def _refusal(path: Path, kinds: tuple[str, ...]) -> str:
    strange = [
        k
        for k in kinds
        if not _is_beside(k) and not k.startswith(("torch.", "_codecs.", "builtins.set", "builtins.complex"))
    ]
    modules = any(k.startswith("torch.nn.modules.") for k in kinds)
    strange += [k for k in kinds if k.startswith("torch.nn.modules.")]
    if not strange:
        return f"{path} is damaged, or no file that torch.save wrote; code is never run from a weights file"
    if modules:
        return whole_module(path, strange[0])
    return (
        f"{path} holds more than tensors: objects of type {', '.join(strange[:3])}, and code is never run from a "
        f"weights file; {ADVICE}"
    )
