"""What a build is timed against: the dense model in float, in PyTorch, and as a runtime quantizes it by itself.

`prepare` writes them where the build's bundle is measured; `load` opens one in the process that measures. Only the time
is asked of them, which of a dense model does not depend on its weights: where they are not at hand, random ones of the
same shapes will do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends import DEFAULT, NO_TOKENS, Answer, Runner, backend, onnx_backend
from edgevit.backends.own_tools import dynamic_int8
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program, load_program, save_program

if TYPE_CHECKING:
    from edgevit.torch_form.eager import Eager

FLOAT, INT8, EAGER = "float", "int8", "torch"
MODEL, PROGRAM, WORDS = "model.onnx", "program", 300


def prepare(program: Program, folder: Path) -> list[dict[str, Any]]:
    """Write a model's baselines into a folder and return what `load` takes and the measurement says of each.

    What cannot be made is among them too, with `why`.
    """
    what = "dense float" if not program.spec.compressed else f"{program.spec.name}, float"
    made = [_made(what, DEFAULT, FLOAT, folder, lambda inside: _float(program, inside))]
    if importlib.util.find_spec("torch") is None:
        made.append({"name": f"{what}, PyTorch", "runtime": "torch", "kind": "", "why": "PyTorch is not installed"})
    else:
        made.append(_made(f"{what}, PyTorch", "torch", EAGER, folder, lambda inside: _saved(program, inside)))
    plain = folder / FLOAT
    made.append(_made(f"{what.removesuffix(' float')} int8, dynamic", DEFAULT, INT8, folder, lambda i: _int8(plain, i)))
    return made


def load(kind: str, folder: Path, *, threads: int) -> Runner:
    """Open a baseline that `prepare` wrote."""
    if kind == EAGER:
        from edgevit.torch_form.eager import Eager

        return _InTorch(Eager(load_program(folder / PROGRAM), threads=threads))
    return backend(DEFAULT).load(folder, threads=threads, file=MODEL)


class _InTorch:
    """A Program in PyTorch as a runner: all its branches run, and no number of tokens is told."""

    def __init__(self, eager: Eager) -> None:
        self._eager = eager

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self._eager.logits(image), np.ones(len(self._eager.spec.branches), dtype=np.uint8)

    def answer(self, image: np.ndarray, effort: float = 0.0) -> Answer:
        return Answer(*self.run(image), NO_TOKENS)

    def close(self) -> None:
        """Do nothing: it goes with its last reference."""


def _made(name: str, runtime: str, kind: str, folder: Path, make: Callable[[Path], None]) -> dict[str, Any]:
    inside = folder / kind
    inside.mkdir()
    try:
        make(inside)
    except Exception as error:  # a tool of somebody else's: its failure is a remark, not the end of a measurement
        return {"name": name, "runtime": runtime, "kind": "", "why": f"{type(error).__name__}: {error}"[:WORDS]}
    return {"name": name, "runtime": runtime, "kind": kind, "folder": str(inside), "why": ""}


def _float(program: Program, folder: Path) -> None:
    onnx_backend(DEFAULT).compile(assemble(program), folder)


def _saved(program: Program, folder: Path) -> None:
    save_program(program, folder / PROGRAM)


def _int8(plain: Path, folder: Path) -> None:
    dynamic_int8(plain / MODEL, folder / MODEL)
