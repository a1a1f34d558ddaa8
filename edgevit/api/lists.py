"""List what there is: models that fit, targets, and what this machine can do."""

from __future__ import annotations

from pathlib import Path

from edgevit import doctor
from edgevit.doctor import Health
from edgevit.frontends.catalogue import Catalogue, read_catalogue
from edgevit.schema.target import Target, list_targets, load_target

__all__ = ["Catalogue", "Health", "Target", "diagnose", "models", "target", "targets"]


def models(part: str = "", *, refused: bool = False) -> Catalogue:
    """Return the models that `load` takes by name, of timm and of T2T-ViT; all were tried.

    Args:
        part: what must be in a name, in any case ("": all).
        refused: also those that do not fit, each with the reason.

    Example:
        >>> [row.name for row in edgevit.models("deit_tiny_patch16").models]
        ['deit_tiny_patch16_224.fb_in1k']
    """
    found = read_catalogue()
    rows = tuple(row for row in found.models if part.lower() in row.name and (row.fits or refused))
    return Catalogue(timm=found.timm, models=rows)


def targets() -> tuple[Target, ...]:
    """Return the targets that ship with edgevit, by name.

    Example:
        >>> sorted({target.backend for target in edgevit.targets()})
        ['onnxruntime', 'openvino', 'tvm']
    """
    return tuple(load_target(name) for name in list_targets())


def target(name: str | Path) -> Target:
    """Return one target, with the reason of each of its choices.

    Args:
        name: a name that `targets()` lists, or the path of a TOML file.

    Raises:
        TargetError: nothing is called so (the nearest names are offered), or the file has faults (all are listed).

    Example:
        >>> edgevit.target("x86-64-onnxruntime").weight_bits
        8
    """
    return load_target(name)


def diagnose() -> Health:
    """Return what this machine can build and run, and the command that installs what is missing.

    Example:
        >>> health = edgevit.diagnose()
        >>> health.edgevit == edgevit.__version__, len(health.targets) == len(edgevit.targets())
        (True, True)
    """
    return doctor.diagnose()
