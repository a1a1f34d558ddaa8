"""Find out what this machine can build and run."""

from __future__ import annotations

from edgevit import doctor
from edgevit.doctor import Health

__all__ = ["Health", "diagnose"]


def diagnose() -> Health:
    """Return what this machine can build and run, and the command that installs what is missing.

    Example:
        >>> health = edgevit.diagnose()
        >>> health.edgevit == edgevit.__version__, len(health.targets) == len(edgevit.targets())
        (True, True)
    """
    return doctor.diagnose()
