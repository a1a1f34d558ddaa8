"""Whether the torch side is installed, asked before anything slow begins."""

from __future__ import annotations

import importlib.util

from edgevit.errors import RuntimeMissingError


def require_torch(purpose: str) -> None:
    """Raise RuntimeMissingError, naming `purpose`, when torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise RuntimeMissingError(
            f"torch is not installed and {purpose} needs it; install the training extra: pip install 'edgevit[train]'"
        )
