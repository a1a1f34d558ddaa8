"""The recipe of a build: what was asked for. It is stored in the manifest, so that a bundle tells how it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `edgevit build` was asked for.

    Attributes:
        model: the Program's name.
        weights_sha256: digest over the arrays that were given, before anything was done to them.
        prune: fraction of the MACs to remove (0 = none).
        gate: expected MACs with gates, as a fraction of the pruned model's (1 = no gates are trained).
        seed: of gate training.
        calibration: name of the calibration set.
        calibration_images: how many images it holds.
        calibration_sha256: digest over its pixels.
        tune_s: CPU seconds that a search for register tiles of compiled kernels might take (0 = the default tiles).
        classes: the model's classes that were kept, by its own numbers (empty = all).
        held_out: images of the calibration set that nothing was chosen by, kept back to judge the build on (0: it was
            judged on other images, or there were too few); `calibration_images` and its digest are without them.
        original: name of the model that was compressed, by this build or before ("" = none, or not known).
        compression: what was done to it, by this build and before, one sentence each.
        macs: fraction of the MACs to leave by merging tokens, and by pruning what that cannot reach (1 = all of them).
        tokens: where tokens were to be merged, such as 4:60,8:60: after block 4 60 pairs, after block 8 60 ("" = not
            said).
        max_drop: points that the build might lose against the original (None = no limit).
    """

    model: str
    weights_sha256: str
    prune: float
    gate: float
    seed: int
    calibration: str
    calibration_images: int
    calibration_sha256: str
    tune_s: float = 0.0
    classes: tuple[int, ...] = ()
    held_out: int = 0
    original: str = ""
    compression: tuple[str, ...] = ()
    max_drop: float | None = None
    macs: float = 1.0
    tokens: str = ""
