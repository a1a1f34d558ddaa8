"""Every error a user can meet, one class and one exit code each.

A message says what happened, the value that was got, what is allowed, and what to do.
Exit code 1 is an unexpected fault (a bug), 2 is wrong usage of the command line (click's own).
"""

from __future__ import annotations

import re

# That memory ran out, as Python, NumPy, the C++ library, torch and the runtimes say it.
NO_MEMORY = re.compile(
    "MemoryError|Unable to allocate|bad_?alloc|Cannot allocate memory|an.t allocate memory|not enough memory"
    "|could not create a primitive|Failed to allocate|failed to map segment|out of memory|an.t start new thread",
    re.IGNORECASE,
)


class EdgevitError(Exception):
    """Base of every error edgevit raises on purpose; `exit_code` is the process status."""

    exit_code = 3
    answered = False  # whether what was asked for was printed all the same


class UnknownModelError(EdgevitError):
    """No model of that name; the message offers the nearest names."""

    exit_code = 10


class UnsupportedModelError(EdgevitError):
    """The model exists but is not a plain pre-norm ViT; the message gives the reason."""

    exit_code = 11


class WeightsError(EdgevitError):
    """Weights missing, corrupt, or with missing, unexpected or wrong-shaped keys."""

    exit_code = 12


class ProgramError(EdgevitError):
    """A Program folder is missing, corrupt or inconsistent."""

    exit_code = 13


class TargetError(EdgevitError):
    """Unknown target (nearest names offered) or a target file with faults (all of them listed)."""

    exit_code = 14


class ImagesError(EdgevitError):
    """No images, too many unreadable ones, images of the wrong kind, or labels that do not fit."""

    exit_code = 15


class OutputError(EdgevitError):
    """The output exists already, or cannot be written."""

    exit_code = 16


class BudgetError(EdgevitError):
    """A pruning or gating budget that cannot be met."""

    exit_code = 17


class RuntimeMissingError(EdgevitError):
    """A package that this command needs is not installed; the message says how to install it."""

    exit_code = 18


class BundleError(EdgevitError):
    """A bundle is missing, damaged, or of another schema version."""

    exit_code = 19


class TrainingError(EdgevitError):
    """A training recipe, its data or its state does not allow training to go on."""

    exit_code = 20


class DeviceError(EdgevitError):
    """A device cannot be reached, lacks what a bundle needs, or did not answer; nothing is left on it."""

    exit_code = 21


class OutOfMemoryError(EdgevitError):
    """More memory is needed than the machine has, or than a limit of the process allows."""

    exit_code = 22


class OperatingPointError(EdgevitError):
    """A bundle has no operating point of that name, or an effort is no number; the message lists what there is."""

    exit_code = 23


class SignatureError(EdgevitError):
    """A bundle's signature is missing or does not hold, or a key cannot sign or verify."""

    exit_code = 24


class VerificationError(EdgevitError):
    """Base of the verifiers' errors: a claim about the build did not hold."""

    exit_code = 30


class ParityError(VerificationError):
    """Two forms of the same function differ by more than the stated tolerance."""

    exit_code = 31


class SkipError(VerificationError):
    """A closed gate does not save the work of its branch."""

    exit_code = 32


class CoverageError(VerificationError):
    """A Gemm that the plan says is int8 does not run as int8."""

    exit_code = 33


class BoundError(VerificationError):
    """Measured memory is above the proven bound, or a run under an arena capped at it fails."""

    exit_code = 34


class AccuracyError(VerificationError):
    """Top-1 or agreement is below the target's limit, or more was lost against the original than `--max-drop`."""

    exit_code = 35


class ComparisonError(EdgevitError):
    """What is to be compared cannot be: a figure is not known, or was taken under other conditions."""

    exit_code = 40


class RegressionError(EdgevitError):
    """A limit of `edgevit compare --fail-if` is crossed."""

    exit_code = 41
    answered = True  # the comparison itself is printed, whatever its form


def of_process(line: str) -> EdgevitError | None:
    """The error on purpose that another process of edgevit ended with, by the last line of its traceback; else None."""
    name, _, words = line.partition(": ")
    module, _, kind = name.rpartition(".")
    found = globals().get(kind) if module == __name__ else None
    return found(words) if isinstance(found, type) and issubclass(found, EdgevitError) else None
