"""Names of ImageNet's classes, as timm ships them: WordNet's words, in the order of the classes."""

from __future__ import annotations

import importlib.util
import re

from edgevit.errors import RuntimeMissingError

SUBSETS = {"imagenet-1k": 1000, "imagenet-12k": 11821, "imagenet-21k": 21843, "imagenet-21k-miil": 11221}
_OF_TAGS = {"in1k": ("imagenet-1k",), "in12k": ("imagenet-12k",), "in21k": ("imagenet-21k", "imagenet-21k-miil")}


def named_subset(tag: str, classes: int) -> str | None:
    """Return the subset whose classes a timm tag states: the last one it was trained on, if the number of classes fits.

    `augreg_in21k_ft_in1k` with 1000 classes is `imagenet-1k`; a tag without one, or another number, is None.
    """
    stated = re.findall(r"(?:^|_)(in1k|in12k|in21k)(?=_|$)", tag)
    subsets = _OF_TAGS[stated[-1]] if stated else ()
    return next((subset for subset in subsets if SUBSETS[subset] == classes), None)


def imagenet_names(subset: str) -> tuple[str, ...]:
    """Return the classes' names of one of `SUBSETS`.

    Raises:
        RuntimeMissingError: timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise RuntimeMissingError(
            f"the class names of {subset} come from timm, which is not installed; install the training extra: "
            "pip install 'edgevit[train]'"
        )
    from edgevit.frontends.timm_import import timm

    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())
