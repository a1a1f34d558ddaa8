"""What a run really calls, as the virtual machine tells it: every kernel, whose weights it was given, and its time.

A kernel's branch is not taken from the program but from the address of the weights that it reads, so a branch body that
a compiler moved out of its `If` shows under its own name. Kernels without weights belong to the function around them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevit.backends.tvm.runner import TvmRunner

# Kernels that multiply matrices, by the name that the stages give them.
PRODUCTS = {"stem": "Gemm", "qkv": "Gemm", "q": "Gemm", "kv": "Gemm", "proj": "Gemm", "fc1": "Gemm", "fc2": "Gemm"}
OPERATORS = {**PRODUCTS, "head": "Gemm", "attention": "MatMul"}
BUILTIN = "vm.builtin."
OUTSIDE = "main"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kernel call. `stage` is whose weights it reads, e.g. `b00_mhsa` or `b00_mhsa.gate`; `main`: nobody's."""

    stage: str
    kernel: str
    ms: float

    @property
    def node(self) -> tuple[str, str]:
        """(name, operator) as the skip verifier reads them."""
        branch, dot, part = self.stage.partition(".")
        name = f"{branch}/skipped" if part == "skip" else f"{branch}{dot}{part}/{self.kernel}"
        return name, OPERATORS.get(self.kernel, self.kernel)


class Watched:
    """A loaded model whose runs are written down; slower than one that is not."""

    def __init__(self, runner: TvmRunner) -> None:
        self._runner = runner
        self._calls: list[Call] = []
        self._open: list[tuple[str, str, float]] = []
        runner.watch(self._note)

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[tuple[Call, ...], np.ndarray]:
        """Run one image: the kernels in order, and gates uint8 `[branches]`."""
        self._calls.clear()
        _, gates = self._runner.run(image, effort)
        return tuple(self._calls), gates

    def _note(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
        if name.startswith(BUILTIN):
            return
        now = 1000 * time.perf_counter()
        if before:
            self._open.append((self._stage(arguments), name, now))
            return
        stage, opened, start = self._open.pop()
        assert opened == name, f"{name} ended inside {opened}"
        if not name.startswith("run_"):
            self._calls.append(Call(stage=stage, kernel=re.sub(r"_\d+$", "", name), ms=now - start))

    def _stage(self, arguments: tuple[Any, ...]) -> str:
        for argument in arguments:
            place = self._runner.places.get(argument.data_ptr()) if hasattr(argument, "data_ptr") else None
            if place is not None:
                return place
        return self._open[-1][0] if self._open else OUTSIDE
