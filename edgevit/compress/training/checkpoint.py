"""Checkpoints of a training run: either the whole new one is there or the whole previous one, whatever happens.

One process writes a checkpoint at a time. What is read is never unpickled into code (`weights_only`), and every byte of
it is checked (the CRC-32 of the zip that torch writes, which torch itself does not look at).
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from edgevit.errors import OutputError, TrainingError
from edgevit.frontends.torch_file import check_torch
from edgevit.util import atomic
from edgevit.util.signals import signals_wait
from edgevit.util.strict_json import shown

VERSION = 1
_VERSION_KEY, _STATE_KEY = "edgevit_training_checkpoint", "state"
_PLAIN = (type(None), bool, int, float, str)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` by temporary name, fsync and rename, so that it is there after a crash or not at all.

    Args:
        path: its folder must exist; what a killed run left there goes with `atomic.sweep`.
        state: tensors, numbers, strings, None, and lists, tuples and dicts of these.

    Raises:
        OutputError: the disk refuses (full, say); what was at `path` before is still there.
        TypeError: the state holds something else.
    """
    _check_plain(state, "state")
    try:
        with atomic.new_file(path) as file, signals_wait():
            _write({_VERSION_KEY: VERSION, _STATE_KEY: dict(state)}, file)
    except OSError as error:
        kept = "the previous one is intact" if path.exists() else "there was none before"
        raise OutputError(
            f"cannot save the checkpoint {path}: {error.strerror or error}; {kept}; make room or allow writing there, "
            "then go on with --resume"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, with every tensor on the CPU.

    Raises:
        TrainingError: no such file, a damaged one, or one that `save` did not write.
    """
    advice = "take another checkpoint, or train anew without --resume"
    if not path.is_file():
        raise TrainingError(f"there is no checkpoint {path} to go on from; {advice}")
    try:
        check_torch(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes zipfile, pickle and torch raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{path} is damaged or no checkpoint ({reason}); {advice}") from error
    if damaged:
        raise TrainingError(f"{path} is damaged: the checksum of its part {damaged!r} is wrong; {advice}")
    if not isinstance(content, dict) or _VERSION_KEY not in content:
        got = f"a file with {_shown(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise TrainingError(f"{path} is no checkpoint of edgevit's training: got {got}; {advice}")
    version = content[_VERSION_KEY]
    if type(version) is not int or version != VERSION:  # a tensor of several numbers has no truth
        raise TrainingError(f"{path} has version {shown(version)}, this edgevit reads version {VERSION}; {advice}")
    state = content.get(_STATE_KEY)
    if not isinstance(state, dict):
        raise TrainingError(f"{path} is no checkpoint of edgevit's training: it holds no state; {advice}")
    return state


def count_numbers(state: Any) -> int:
    """Count the numbers that the tensors of a state hold; what is in it several times counts once."""
    waiting, seen, count = [state], set[int](), 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            count += value.untyped_storage().nbytes() // value.element_size() if value.layout is torch.strided else 0
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
    return count


class _Remembering:
    """A file for torch.save that keeps the error it met: torch reports a full disk as an unexpected position."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._raw.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._raw.flush()


def _write(content: dict[str, Any], raw: IO[bytes]) -> None:
    file = _Remembering(raw)
    try:
        torch.save(content, file)  # type: ignore[arg-type]  # torch asks for write and flush alone
    except RuntimeError as error:
        raise file.error or error from error
    raw.flush()


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError for other types: a NumPy number is a float to Python, yet `weights_only` refuses to read it."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, Tensor):
        return
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (int, str):
                raise TypeError(f"{where} has the key {key!r}; a checkpoint holds str and int keys alone")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is a {kind.__name__}; a checkpoint holds tensors and plain Python values alone")


def _shown(content: dict[Any, Any]) -> str:
    names = [str(name)[:80] for name in content]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
