"""Packages that not every command needs: torch, asked for before anything slow begins, and the runtimes."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from edgevit.errors import RuntimeMissingError
from edgevit.util.signals import signals_wait


def require_torch(purpose: str) -> None:
    """Raise RuntimeMissingError, naming `purpose`, when torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise RuntimeMissingError(
            f"torch is not installed and {purpose} needs it; install the training extra: pip install 'edgevit[train]'"
        )


def imported(name: str, install: str) -> Any:
    """Return the module of a package, which `install` installs.

    Signals wait: a package in C++ takes one that comes while it starts for a failure of its own.

    Raises:
        RuntimeMissingError: it cannot be imported.
    """
    with signals_wait():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise RuntimeMissingError(f"{name} cannot be imported ({error}); install it: {install}") from error
