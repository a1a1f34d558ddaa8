"""A model's own library in this process, by the functions that `plugin.h` lists."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.errors import BundleError, RuntimeMissingError

SYMBOL, KIND = "edgevit_model", 1
NUMBER, SIZE, ADDRESS = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p


class _Library(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("library", "threads")),
        *((f"{name}_bytes", ctypes.c_uint64) for name in ("memory", "arena", "weights", "image")),
        *((name, ctypes.c_uint32) for name in ("classes", "branches", "points")),
        ("version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("message", ctypes.CFUNCTYPE(ctypes.c_char_p, NUMBER)),
        ("init", ctypes.CFUNCTYPE(NUMBER, ADDRESS, ADDRESS, SIZE, ADDRESS, SIZE)),
        ("run", ctypes.CFUNCTYPE(NUMBER, ADDRESS, ADDRESS, ctypes.c_float, ADDRESS, ADDRESS)),
        ("tokens", ctypes.CFUNCTYPE(ADDRESS, ADDRESS)),
        ("start", ctypes.CFUNCTYPE(NUMBER, ADDRESS, NUMBER)),
        ("listen", ADDRESS),
    )


class Plugin:
    """A loaded library; arguments are addresses, what it refuses is an error."""

    def __init__(self, path: Path) -> None:
        """Load it; its hash was looked at before.

        Raises:
            BundleError: it is no such library.
        """
        try:
            self.about: Any = _Library.in_dll(ctypes.CDLL(str(path.resolve())), SYMBOL)
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot load {path}: {error}; unpack the bundle again") from error
        if self.about.library != KIND:
            raise BundleError(
                f"{path} is a library of kind {self.about.library}, this version takes {KIND}; build again"
            )
        self._path = path

    def init(self, memory: int, size: int, weights: int, weights_bytes: int) -> int:
        """Make `memory` a model and return its address.

        Raises:
            BundleError: these are not its weights, or this CPU lacks what it was compiled for.
        """
        model = ctypes.c_void_p()
        self._check(self.about.init(ctypes.addressof(model), memory, size, weights, weights_bytes))
        assert model.value is not None
        return model.value

    def run(self, model: int, image: int, effort: float, logits: int, gates: int) -> None:
        """Run one image.

        Raises:
            BundleError: it refuses.
        """
        self._check(self.about.run(model, image, effort, logits, gates))

    def tokens(self, model: int) -> np.ndarray:
        """Return patch tokens left after each point in the last run, int32 `[points]`."""
        points = int(self.about.points)
        if not points:
            return np.empty(0, np.int32)
        return np.array((ctypes.c_int32 * points).from_address(self.about.tokens(model)), dtype=np.int32)

    def start(self, model: int, threads: int) -> None:
        """Let runs have so many threads; 1 ends them.

        Raises:
            RuntimeMissingError: the system gives none.
        """
        if self.about.start(model, threads):
            raise RuntimeMissingError(f"the system gives no {threads} threads; give fewer with --threads")

    def _check(self, status: int) -> None:
        if status:
            raise BundleError(f"{self._path} refuses: {self.about.message(status).decode()}; unpack the bundle again")
