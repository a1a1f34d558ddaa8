"""Options that `build` and `compress` share: how the images of an own model are prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgevit.cli.ranges import Number

if TYPE_CHECKING:
    from edgevit.api.load import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
NAMES = ("mean", "std", "crop", "crop_mode", "interpolation", "orientation")


def _colour(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Return three numbers, or one for all three."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(abs(number) < 1e6 for number in numbers):
        raise click.BadParameter(f"got {text!r}, allowed: three numbers with commas, such as 0.485,0.456,0.406")
    return numbers * 3 if len(numbers) == 1 else numbers


def preprocessing_options(command: F) -> F:
    """Add the options to a command, at the end of its list so far."""
    options = (
        click.option(
            "--mean",
            callback=_colour,
            metavar="R,G,B",
            help="Of a named model's images, 0..1 (default: its own).",
        ),
        click.option("--std", callback=_colour, metavar="R,G,B", help="Deviation of a named model's images, 0..1."),
        click.option(
            "--crop",
            type=Number(0, 1, min_open=True),
            help="Part of a resized image that a named model sees (crop_pct).",
        ),
        click.option("--crop-mode", type=click.Choice(["center", "squash", "border"]), help="As timm's crop_mode."),
        click.option("--interpolation", type=click.Choice(FILTERS), help="Filter that resizes a named model's images."),
        click.option(
            "--orientation",
            type=click.Choice(["ignore", "apply"]),
            help="EXIF orientation of images: ignored by default, as timm does.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_preprocessing(options: dict[str, Any]) -> Preprocessing:
    """Take these options out of a command's."""
    from edgevit.api.load import Preprocessing

    return Preprocessing(**{name: options.pop(name) for name in NAMES})
