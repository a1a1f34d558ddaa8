"""A photograph becomes the same pixels in timm, in a build and in the bundle's own runner, whatever the file holds."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgevit.bundle import runner
from edgevit.errors import ImagesError
from edgevit.images.image_set import UnreadableImage, decode, load_images, prepare
from edgevit.images.labelled import open_labelled, prepare_all
from edgevit.program.spec import CropMode, ImageSpec

SPEC = ImageSpec(
    height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.9, interpolation="bicubic"
)
UPRIGHT = replace(SPEC, orientation="apply")


@lru_cache(maxsize=200)
def timms(spec: ImageSpec) -> Any:
    """timm's own evaluation transform, to pixels."""
    from edgevit.frontends.timm_import import timm

    return timm.data.create_transform(
        input_size=(3, spec.height, spec.width),
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        normalize=False,
    )


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def both(raw: bytes, spec: ImageSpec, folder: Path) -> np.ndarray:
    """The pixels `[height, width, 3]` of a file, which the build and the runner must agree on."""
    (folder / "photo").write_bytes(raw)
    got = prepare(decode(raw), spec)
    np.testing.assert_array_equal(runner.read_image(folder / "photo", asdict(spec))[0], got)
    return got


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    to=st.sampled_from([(32, 32), (24, 40), (33, 33), (64, 31)]),
    mode=st.sampled_from(["center", "squash", "border"]),
    crop=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.7]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    mean=st.sampled_from([(0.485, 0.456, 0.406), (0.5, 0.5, 0.5), (0.0, 1.0, 0.1)]),
)
def test_any_size_in_any_crop_mode_is_timms_and_the_runners(
    size: tuple[int, int],
    to: tuple[int, int],
    mode: CropMode,
    crop: float,
    interpolation: str,
    mean: tuple[float, float, float],
) -> None:
    picture = noise(*size)
    spec = replace(
        SPEC, height=to[0], width=to[1], crop_mode=mode, crop_pct=crop, interpolation=interpolation, mean=mean
    )
    try:
        got = prepare(picture, spec)
    except UnreadableImage:  # a side of no pixel is left, which timm cannot resize either
        with pytest.raises(ValueError, match="> 0"):
            timms(spec)(picture)
        return
    np.testing.assert_array_equal(got, timms(spec)(picture).permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(got, runner.prepare(picture, asdict(spec))[0])


@pytest.mark.parametrize("mode", ["squash", "border"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (500, 333), (31, 900), (2000, 100)])
def test_photographs_of_usual_sizes_in_other_crop_modes(mode: CropMode, size: tuple[int, int]) -> None:
    for crop in (1.0, 0.9):
        spec = replace(SPEC, height=224, width=224, crop_mode=mode, crop_pct=crop)
        picture = noise(*size)
        expected = timms(spec)(picture).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(prepare(picture, spec), expected)
        np.testing.assert_array_equal(runner.prepare(picture, asdict(spec))[0], expected)


def test_the_crop_modes_differ_where_they_should() -> None:
    picture = Image.new("RGB", (90, 30), (200, 10, 10))
    pixels = {m: prepare(picture, replace(SPEC, crop_mode=m, crop_pct=1.0)) for m in ("center", "squash", "border")}
    assert (pixels["center"] == (200, 10, 10)).all() and (pixels["squash"] == (200, 10, 10)).all()
    assert (pixels["border"][0] == (124, 116, 104)).all(), "filled with the mean"
    assert (pixels["border"][16] == (200, 10, 10)).all()


def test_crop_mode_and_orientation_hold_in_every_way_that_images_are_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        noise(90, 30).save(tmp_path / "set" / name / "a.jpg", exif=exif, quality=95)
    spec = replace(UPRIGHT, crop_mode="border")
    raw = (tmp_path / "set/cat/a.jpg").read_bytes()
    expected = both(raw, spec, tmp_path)
    assert not np.array_equal(expected, both(raw, replace(spec, orientation="ignore"), tmp_path))
    assert not np.array_equal(expected, both(raw, replace(spec, crop_mode="center"), tmp_path))
    np.testing.assert_array_equal(load_images(tmp_path / "set", spec).images[0], expected)
    np.testing.assert_array_equal(prepare_all(open_labelled(tmp_path / "set"), spec)[0][1], expected)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_orientation_is_ignored_as_timm_does_or_applied(turn: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = turn
    raw = file(noise(50, 20), kind, exif=exif)
    with Image.open(io.BytesIO(raw)) as opened:
        plain, turned = opened.convert("RGB"), ImageOps.exif_transpose(opened).convert("RGB")
    assert (turned.size == (20, 50)) == (turn > 4)
    np.testing.assert_array_equal(both(raw, SPEC, tmp_path), timms(SPEC)(plain).permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(both(raw, UPRIGHT, tmp_path), timms(SPEC)(turned).permute(1, 2, 0).numpy())


def test_a_tiff_is_turned_once(tmp_path: Path) -> None:
    """Pillow turns a TIFF when it reads it, for timm too."""
    raw = file(noise(50, 20), "TIFF", tiffinfo={0x112: 6})
    np.testing.assert_array_equal(both(raw, UPRIGHT, tmp_path), both(raw, SPEC, tmp_path))
    assert decode(raw).size == (20, 50)


def test_a_damaged_orientation_is_an_unreadable_image(tmp_path: Path) -> None:
    raw = file(noise(50, 20), "JPEG", exif=b"Exif\0\0no TIFF at all")
    assert both(raw, SPEC, tmp_path).shape == (32, 32, 3)
    with pytest.raises(UnreadableImage, match="damaged EXIF orientation"):
        prepare(decode(raw), UPRIGHT)


RAMP = np.linspace(0, 65535, 24 * 30).reshape(24, 30).round().astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_to_8(kind: str, tmp_path: Path) -> None:
    raw = file(Image.fromarray(RAMP), kind)
    expected = np.rint(RAMP / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(decode(raw))[..., 1], expected)
    assert both(raw, SPEC, tmp_path).std() > 50, "no longer white"


def tiff(
    values: np.ndarray, bits: int, *, sample: int = 1, photometric: int = 1, order: Literal["<", ">"] = "<"
) -> bytes:
    """A TIFF of one strip of grey samples that are written as they are."""
    height, width = values.shape
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 0),
        (277, 1),
        (278, height),
    ]
    entries += [(278, height), (279, values.nbytes), (339, sample)]
    start = 8 + 2 + 12 * len(entries) + 4
    short = np.dtype("u2").newbyteorder(order)
    long = np.dtype("u4").newbyteorder(order)
    head = (b"II" if order == "<" else b"MM") + np.array([42], short).tobytes() + np.array([8], long).tobytes()
    head += np.array([len(entries)], short).tobytes()
    for tag, value in entries:
        value = start if tag == 273 else value
        head += np.array([tag, 4], short).tobytes() + np.array([1, value], long).tobytes()
    return head + bytes(4) + values.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiffs_byte_order_bits_and_polarity_are_the_files(order: Literal["<", ">"], tmp_path: Path) -> None:
    expected = np.rint(RAMP / 257).astype(np.uint8)
    raw = tiff(RAMP.astype(np.dtype("u2").newbyteorder(order)), 16, order=order)
    assert np.array_equal(np.asarray(decode(raw))[..., 0], expected)
    both(raw, SPEC, tmp_path)
    if order == "<":
        inverse = tiff(RAMP, 16, photometric=0)
        assert np.array_equal(np.asarray(decode(inverse))[..., 0], 255 - expected)
        both(inverse, SPEC, tmp_path)
        # Two samples of 12 bits in three bytes: 0 and 4095.
        twelve = tiff(np.tile(np.array([0x00, 0x0F, 0xFF], np.uint8), (4, 3)), 12).replace(
            np.array([9], "<u4").tobytes(), np.array([6], "<u4").tobytes(), 1
        )
        assert np.asarray(decode(twelve))[..., 0].tolist() == [[0, 255] * 3] * 4
        both(twelve, SPEC, tmp_path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (file(Image.fromarray(RAMP.astype(np.float32) / 65535), "TIFF"), "float values"),
        (file(Image.fromarray(RAMP.astype(np.float32) / 257), "TIFF"), "float values"),
        (file(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "integers of 32 bits"),
        (tiff(RAMP.astype(np.int16), 16, sample=2), "integers of 16 bits"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "photo.tif").write_bytes(raw)
    with pytest.raises(ImagesError, match=f"{said}.*whose range the file does not say; scale"):
        load_images(tmp_path / "photo.tif", SPEC)
    with pytest.raises(ValueError, match=f"{said}.*whose range the file does not say; scale"):
        runner.read_image(tmp_path / "photo.tif", asdict(SPEC))


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG"), ("LA", "PNG"), ("P", "PNG")])
def test_other_modes_are_converted_as_timm_converts_them(mode: str, kind: str, tmp_path: Path) -> None:
    raw = file(noise(60, 40).convert(mode), kind)
    with Image.open(io.BytesIO(raw)) as opened:
        expected = timms(SPEC)(opened.convert("RGB")).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(both(raw, SPEC, tmp_path), expected)


def test_alpha_is_dropped_as_timm_drops_it(tmp_path: Path) -> None:
    picture = noise(60, 40)
    clear = picture.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(both(file(clear), SPEC, tmp_path), both(file(picture), SPEC, tmp_path))


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PDF", "ICO", "TGA"])
def test_only_the_formats_that_are_named_are_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by content: an EPS that is called .jpg would be handed to Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "photo.jpg").write_bytes(file(noise(40, 40), kind))
    with pytest.raises(ImagesError, match="not an image of these formats: JPEG, PNG, BMP, WEBP, PPM, TIFF"):
        load_images(tmp_path / "photo.jpg", SPEC)
    with pytest.raises(OSError, match="cannot identify"):
        runner.read_image(tmp_path / "photo.jpg", asdict(SPEC))
