"""Regenerate the shipped calibration set from photographs that scikit-image and scikit-learn carry in their wheels.

Run it in an environment of its own: pip install scikit-image scikit-learn pillow, then python calibration/make.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIDE = 256  # pixels: enough for the 248 that a 224-pixel model resizes to
QUALITY = 88

# Views of a photograph: centre as fractions of width and height, side as a fraction of the shorter one.
CENTRE = (0.5, 0.5, 1.0)
CORNERS = ((0.3, 0.3, 0.72), (0.7, 0.3, 0.72), (0.3, 0.7, 0.72), (0.7, 0.7, 0.72))
CLOSE = (0.5, 0.45, 0.55)
ENDS = ((0.0, 0.5, 1.0), (1.0, 0.5, 1.0))


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One source file: where its package keeps it, who made it, under which licence, and the views taken of it."""

    package: str
    file: str
    source: str
    licence: str
    views: tuple[tuple[float, float, float], ...]


PHOTOGRAPHS = (
    Photograph(
        package="skimage",
        file="data/astronaut.png",
        source="Eileen Collins, NASA Great Images (flic.kr/p/r9qvLn), via scikit-image",
        licence="public domain",
        views=(CENTRE, *CORNERS, CLOSE),
    ),
    Photograph(
        package="skimage",
        file="data/camera.png",
        source="Cameraman, photograph by Lav Varshney, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE, CLOSE),
    ),
    Photograph(
        package="skimage",
        file="data/chelsea.png",
        source="Chelsea the cat, photograph by Stefan van der Walt, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE, *ENDS, (0.55, 0.4, 0.75)),
    ),
    Photograph(
        package="skimage",
        file="data/coffee.png",
        source="Cup of coffee, photograph by Rachel Michetti, courtesy of Pikolo Espresso Bar, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE, *ENDS, *CORNERS[1:3]),
    ),
    Photograph(
        package="skimage",
        file="data/rocket.jpg",
        source="Falcon 9 launch, photograph by SpaceX (flickr.com/photos/spacexphotos/16511594820), via scikit-image",
        licence="public domain",
        views=(CENTRE, *ENDS, CLOSE),
    ),
    Photograph(
        package="skimage",
        file="data/hubble_deep_field.jpg",
        source="Hubble eXtreme Deep Field, NASA, via scikit-image",
        licence="public domain",
        views=((0.35, 0.4, 0.45), (0.7, 0.6, 0.6)),
    ),
    Photograph(
        package="skimage",
        file="data/retina.jpg",
        source="Fundus photograph of a normal left eye, Mikael Haeggstroem, Wikimedia Commons, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE,),
    ),
    Photograph(
        package="skimage",
        file="data/grass.png",
        source="Grass texture by linolafett, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE,),
    ),
    Photograph(
        package="skimage",
        file="data/gravel.png",
        source="Gravel texture, CC0Textures Gravel04, via scikit-image",
        licence="CC0-1.0",
        views=(CENTRE,),
    ),
    Photograph(
        package="sklearn",
        file="datasets/images/china.jpg",
        source="Chinese temple, photograph by danielbuechele (flickr.com/photos/danielbuechele/6061409035), "
        "cropped and resized, via scikit-learn",
        licence="CC-BY-2.0",
        views=(CENTRE, *ENDS, *CORNERS),
    ),
    Photograph(
        package="sklearn",
        file="datasets/images/flower.jpg",
        source="Flower, photograph by vultilion (flickr.com/photos/vultilion/6056698931), "
        "cropped and resized, via scikit-learn",
        licence="CC-BY-2.0",
        views=(CENTRE, *ENDS, (0.62, 0.45, 0.7)),
    ),
)


def view(picture: Image.Image, x: float, y: float, scale: float) -> Image.Image:
    """A square of `picture` around (x, y), moved inside where it would stick out, at SIDE pixels."""
    side = round(min(picture.size) * scale)
    left = min(max(round(x * picture.width - side / 2), 0), picture.width - side)
    top = min(max(round(y * picture.height - side / 2), 0), picture.height - side)
    cropped = picture.crop((left, top, left + side, top + side))
    return cropped.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def make(folder: Path, roots: dict[str, Path]) -> str:
    """Write the images into `folder`/images and return the manifest's text."""
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for photograph in PHOTOGRAPHS:
        picture = Image.open(roots[photograph.package] / photograph.file).convert("RGB")
        for number, where in enumerate(photograph.views):
            path = folder / "images" / f"{Path(photograph.file).stem}-{number}.jpg"
            view(picture, *where).save(path, quality=QUALITY, optimize=True)
            values = {
                "file": path.relative_to(folder).as_posix(),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "source": photograph.source,
                "licence": photograph.licence,
            }
            entries.append("[[image]]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in values.items()))
    head = (
        'name = "shipped"\n'
        f'description = "{len(entries)} views of {len(PHOTOGRAPHS)} photographs: for a demonstration and for '
        'activation ranges, not for accuracy"\n'
        'licence = "CC0-1.0, public domain and CC-BY-2.0, as each image says"\n'
    )
    return "\n".join([head, *entries])


def main() -> None:
    import skimage
    import sklearn

    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=here, help="where shipped.toml and images/ are written")
    folder = parser.parse_args().folder
    roots = {"skimage": Path(skimage.__file__).parent, "sklearn": Path(sklearn.__file__).parent}
    (folder / "shipped.toml").write_text(make(folder, roots), encoding="utf-8")


if __name__ == "__main__":
    main()
