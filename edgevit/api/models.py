"""List the models that fit; read without numpy and torch."""

from __future__ import annotations

from edgevit.frontends.catalogue import Catalogue, read_catalogue

__all__ = ["Catalogue", "models"]


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
