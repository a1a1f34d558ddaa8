"""Whether images can calibrate a model, and which of them are kept back to judge what came of it.

A range that no image exercised is a guess, and agreement on the images that chose it is no evidence.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from edgevit.errors import ImagesError
from edgevit.images.image_set import ImageSet
from edgevit.program.pixels import pixels_digest
from edgevit.program.spec import ImageSpec

FEW_IMAGES = 16  # calibrating on fewer is warned of
JUDGED_SHARE, JUDGED_LEAST, JUDGED_MOST_SHARE = 5, 8, 3  # a fifth, but 8 where that is not more than a third
FEWEST_TO_SPLIT = 10
FLAT = 2.0  # standard deviation of the pixels, of 255, below which an image is one colour
LEAST_SPAN, SMALL_SPAN = 16, 64  # of 255, between the 1st and the 99th percentile of all pixels
FAR = 0.25  # of 0..1; sets of photographs have their mean within 0.15 of the model's
PHOTOGRAPHS = (0.3, 0.7)  # a model whose mean lies outside does not tell how bright its training images were
NOISE = 0.3  # correlation of neighbouring pixels; photographs have above 0.8
PROBED_IMAGES = 64


def split_calibration(images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """Keep some images back, evenly spread and always the same ones: those to calibrate with, those to judge on.

    A fifth of the distinct images, but 8 where these are no more than a third; none of fewer than 10. An image that is
    equal to one kept back calibrates nothing, and an image counts once among those that judge.
    """
    digests = image_digests(images.images)
    first = sorted({digest: index for index, digest in reversed(list(enumerate(digests)))}.values())
    count = min(max(len(first) // JUDGED_SHARE, JUDGED_LEAST), len(first) // JUDGED_MOST_SHARE)
    if len(first) < FEWEST_TO_SPLIT:
        return images, None
    held = [first[(2 * i + 1) * len(first) // (2 * count)] for i in range(count)]
    kept_back = {digests[index] for index in held}
    used = [index for index, digest in enumerate(digests) if digest not in kept_back]
    return _chosen(images, used), _chosen(images, held)


def check_calibration(images: ImageSet, spec: ImageSpec) -> tuple[str, ...]:
    """Hold images against what ranges need; what is merely doubtful is returned, a line each.

    Args:
        images: what is about to calibrate, uint8 `[n, height, width, 3]`.
        spec: `mean` is of the pixels that the model was trained on.

    Raises:
        ImagesError: the images exercise no ranges: all are one image, or of one colour each, or hardly differ in
            brightness.
    """
    pixels, source = images.images, images.source
    spans, distinct = _deviations(pixels), len(set(image_digests(pixels)))
    flat = int((spans < FLAT).sum())
    low, high = (float(v) for v in np.percentile(_probed(pixels), (1, 99)))
    why = ""
    if flat == len(images):
        why = f"of its {len(images)} images each is one flat colour"
    elif distinct == 1:
        why = f"its {len(images)} images are all equal" if len(images) > 1 else "it holds 1 image"
    elif high - low < LEAST_SPAN:
        why = f"its pixels lie within {low:.0f} to {high:.0f} of 0 to 255"
    if why:
        raise ImagesError(
            f"{source} cannot calibrate a model: {why}, so the ranges of the activations would be guesses. Give 100 to "
            "300 different images like those that the device will see"
        )
    doubts = []
    if distinct < FEW_IMAGES:
        doubts.append(f"{distinct} different images are few to calibrate with; give 100 to 300")
    if distinct < len(images):
        doubts.append(f"{copies(images)} of {len(images)} calibration images are copies of others")
    if flat:
        doubts.append(f"{flat} of {len(images)} calibration images are one flat colour")
    if high - low < SMALL_SPAN:
        doubts.append(f"the calibration images use only {low:.0f} to {high:.0f} of 0 to 255: ranges may be too narrow")
    return (*doubts, *_far(pixels, spec))


def shared_images(first: ImageSet, second: ImageSet) -> int:
    """Return how many images of the second set are, pixel for pixel, in the first."""
    seen = set(image_digests(first.images))
    return sum(digest in seen for digest in image_digests(second.images))


def copies(images: ImageSet) -> int:
    """Return how many images are, pixel for pixel, one that came before."""
    return len(images) - len(set(image_digests(images.images)))


def image_digests(images: np.ndarray) -> tuple[bytes, ...]:
    """Return one digest of the pixels per image, of uint8 `[n, height, width, 3]`."""
    return tuple(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images)


def _chosen(images: ImageSet, indices: list[int]) -> ImageSet:
    pixels = images.images[indices]
    return replace(
        images,
        images=pixels,
        labels=None,
        names=tuple(images.names[i] for i in indices),
        unreadable=(),
        digest=pixels_digest(pixels),
    )


def _deviations(pixels: np.ndarray) -> np.ndarray:
    """Return the largest standard deviation over the channels, per image, `[n]`."""
    return np.array([image.reshape(-1, 3).std(axis=0).max() for image in pixels])


def _probed(pixels: np.ndarray) -> np.ndarray:
    """Return at most 64 of the images, evenly spread."""
    return pixels[:: -(-len(pixels) // PROBED_IMAGES)]


def _far(pixels: np.ndarray, spec: ImageSpec) -> list[str]:
    """Signs, sound on their own, that the images are unlike what the model learned from: brightness, and noise."""
    some = _probed(pixels)
    mean, expected = float(some.mean()) / 255, float(np.mean(spec.mean))
    doubts = []
    if PHOTOGRAPHS[0] <= expected <= PHOTOGRAPHS[1] and abs(mean - expected) > FAR:
        doubts.append(
            f"the calibration images are much {'darker' if mean < expected else 'brighter'} than what the model was "
            f"trained on (mean {mean:.2f} of 0 to 1, expected near {expected:.2f}); calibrate with images like those "
            "that the device will see"
        )
    grey = some.mean(axis=3)
    left, right = (part.ravel() - part.mean() for part in (grey[:, :, :-1], grey[:, :, 1:]))
    if left @ right < NOISE * float(np.linalg.norm(left) * np.linalg.norm(right)):
        doubts.append("the calibration images look like noise: neighbouring pixels have nothing to do with each other")
    return doubts
