"""Pictures of the C++ runner, without a model and under sanitizers: as Pillow decodes and resizes them, to the bit."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgevit.bundle import runner as shipped
from tests.absent import unavailable

CXX = Path(shipped.__file__).parents[1] / "backends/tvm/cxx"
SOURCE = Path(__file__).with_name("pixels.cc")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLAIN = {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center", "orientation": "ignore"}
CONTRACT = {**PLAIN, "height": 32, "width": 32, "mean": [0.485, 0.456, 0.406]}
WHOLE = {**CONTRACT, "height": 0}
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
Ask = Callable[[Sequence[tuple[Path, dict[str, Any]]]], list[np.ndarray | str]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """What the program makes of files with contracts: pixels, or why it refuses."""
    if shutil.which("g++") is None:
        unavailable("g++ is not installed; on Debian: apt install g++")
    program = tmp_path_factory.mktemp("pixels") / "pixels"
    library = CXX.parent / "compile/clib/c"
    subprocess.run(["g++", *FLAGS, *SANITIZED, f"-I{CXX}", f"-I{library}", SOURCE, "-o", program], check=True)

    def told(cases: Sequence[tuple[Path, dict[str, Any]]]) -> list[np.ndarray | str]:
        lines = "".join(
            f"{path} {c['height']} {c['width']} {c['crop_pct']!r} {c['interpolation']} {c['crop_mode']} "
            f"{c['orientation']} {' '.join(map(repr, c['mean']))}\n"
            for path, c in cases
        )
        done = subprocess.run([program], input=lines.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return list(answers(io.BytesIO(done.stdout)))

    return told


def answers(stream: io.BytesIO) -> Iterator[np.ndarray | str]:
    while line := stream.readline().decode().strip():
        refused = line.startswith("refused ")
        yield line.removeprefix("refused ") if refused else np.frombuffer(stream.read(int(line)), np.uint8)


def noise(rng: np.random.Generator, width: int, height: int, kind: str) -> Image.Image:
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if kind == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width)).astype(np.uint16))
    picture = Image.fromarray(pixels if kind == "RGBA" else pixels[..., :3])
    return picture.quantize(int(rng.integers(2, 200))) if kind == "P" else picture.convert(kind)


def drawn(rng: np.random.Generator, path: Path) -> tuple[Path, dict[str, Any]]:
    """A picture of any kind and shape, and a contract."""
    kind = str(rng.choice(["RGB", "L", "RGBA", "P", "1", "LA", "I;16"]))
    picture = noise(rng, int(rng.integers(1, 120)), int(rng.integers(1, 250)), kind)
    options: dict[str, Any] = {"transparency": 1} if kind in ("P", "L") and rng.random() < 0.5 else {}
    if rng.random() < 0.2:
        path = path.with_suffix(".ppm")
        picture, options = shipped.to_rgb(picture), {}
    picture.save(path, **options)
    sides = [int(side) for side in rng.choice([24, 33, 48], 2)]
    square = rng.random() < 0.6
    return path, {
        "height": sides[0],
        "width": sides[0] if square else sides[1],
        "crop_pct": float(rng.choice([0.875, 0.9, 0.95, 1.0])),
        "interpolation": str(rng.choice(FILTERS)),
        "crop_mode": str(rng.choice(["center", "squash", "border"])),
        "orientation": "ignore",
        "mean": [0.5, 0.485, 0.1],
    }


def test_png_and_ppm_become_pillows_pixels_to_the_bit(ask: Ask, tmp_path: Path) -> None:
    """Every kind of PNG, every filter and crop, tall and wide: what `runner/run.py` makes of the same file."""
    rng = np.random.default_rng(0)
    cases = [drawn(rng, tmp_path / f"{i}.png") for i in range(120)]
    refused = 0
    for (path, contract), got in zip(cases, ask(cases), strict=True):
        try:
            expected = shipped.read_image(path, contract).ravel()
        except ValueError as error:
            assert str(error) in got and "is no shape to crop" in str(got)
            refused += 1
            continue
        assert isinstance(got, np.ndarray), (path, contract, got)
        np.testing.assert_array_equal(got, expected, err_msg=f"{path} {contract}")
    assert refused < 20


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_libjpegs_to_the_bit(
    ask: Ask, tmp_path: Path, kind: str, progressive: bool, subsampling: int
) -> None:
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((157, 101))
    path = tmp_path / "photo.jpg"
    smooth.convert(kind).save(path, quality=85, progressive=progressive, subsampling=subsampling)
    whole, prepared = ask([(path, WHOLE), (path, CONTRACT)])
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    for got, wanted in ((whole, expected), (prepared, shipped.read_image(path, CONTRACT))):
        np.testing.assert_array_equal(got, wanted.ravel())


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_exif_turns_a_picture_where_the_contract_says_so(ask: Ask, tmp_path: Path, form: str) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (37, 50, 3), dtype=np.uint8))
    wide = {**CONTRACT, "width": 48}
    cases = []
    for way in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = way
        path = tmp_path / f"{way}.{form}"
        picture.save(path, exif=exif)
        cases += [(path, {**wide, "orientation": what}) for what in ("apply", "ignore")]
    seen = set()
    for (path, contract), got in zip(cases, ask(cases), strict=True):
        assert isinstance(got, np.ndarray), got
        np.testing.assert_array_equal(got, shipped.read_image(path, contract).ravel())
        seen.add(got.tobytes())
    assert len(seen) == 8  # each way is another picture


def test_xmp_turns_it_where_exif_does_not(ask: Ask, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 50, 3), dtype=np.uint8))
    text = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", text)
    picture.save(tmp_path / "a.png", pnginfo=told)
    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", text, zip=True)
    picture.save(tmp_path / "zipped.png", pnginfo=told)
    turned = {**CONTRACT, "orientation": "apply"}
    plain, zipped, ignored = ask(
        [(tmp_path / "a.png", turned), (tmp_path / "zipped.png", turned), (tmp_path / "zipped.png", CONTRACT)]
    )
    np.testing.assert_array_equal(plain, shipped.read_image(tmp_path / "a.png", turned).ravel())
    assert "compressed" in zipped and isinstance(ignored, np.ndarray)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bad_files() -> dict[str, tuple[bytes, str]]:
    """By name: bytes, and what is told of them."""
    good = {}
    for form in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, form)
        good[form] = buffer.getvalue()
    png, jpeg = good["PNG"], good["JPEG"]
    frame = jpeg.index(b"\xff\xc0")
    sized = [jpeg[: frame + 5] + struct.pack(">HH", *size) + jpeg[frame + 9 :] for size in ((65535, 65535), (0, 40))]
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    cmyk = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
    deep = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(deep, "JPEG", progressive=True)
    deeper = deep.getvalue()
    place = deeper.index(b"\xff\xc2")
    packer = zlib.compressobj(1)
    endless = b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(40)), packer.flush()])
    return {
        "jpeg of much memory": (
            deeper[: place + 5] + struct.pack(">HH", 9000, 9000) + deeper[place + 9 :],
            "decoding it needs more memory than allowed: 805306368 bytes",
        ),
        "png that unpacks without end": (
            png[:33] + chunk(b"IDAT", endless) + chunk(b"IEND", b""),
            "decoding it needs more memory than allowed",
        ),
        "png cut": (png[: len(png) // 2], "cut short"),
        "png without end": (png[:-12], "cut short"),
        "png with one bit": (png[:60] + bytes([png[60] ^ 1]) + png[61:], "another CRC"),
        "png too large": (png[:8] + chunk(b"IHDR", header) + png[33:], "60000 x 60000 pixels, allowed: 89478485"),
        "png without pixels": (png[:33] + chunk(b"IEND", b""), "it has no pixels"),
        "png without header": (png[:8] + png[33:], "its header is not its beginning"),
        "png of another kind": (png[:33] + chunk(b"ABCD", b"") + png[33:], "does not know, but needs"),
        "png that is no zip": (png[:33] + chunk(b"IDAT", b"\0" * 9) + chunk(b"IEND", b""), "cannot be decoded"),
        "jpeg cut": (jpeg[: len(jpeg) // 2], "cut short"),
        "jpeg header cut": (jpeg[:30], "cut short"),
        "jpeg too large": (sized[0], "65535 x 65535 pixels"),
        "jpeg of no height": (sized[1], "it has no pixels"),
        "jpeg of 12 bits": (jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "12 bits"),
        "jpeg of many scans": (jpeg[:-2] + b"\xff\xda" * 40, "41 scans, allowed: 32"),
        "jpeg of unknown inks": (cmyk.getvalue().replace(b"Adobe", b"Adobi"), "which inks"),
        "strip": (b"P6 1 5000 255\n" + bytes(15000), "is no shape to crop"),
        "ppm cut": (b"P6 9 9 255\n" + bytes(9), "cut short"),
        "text": (b"no picture", "no picture"),
    }


def test_what_is_damaged_or_too_large_is_refused_before_it_is_decoded(ask: Ask, tmp_path: Path) -> None:
    bad = bad_files()
    cases = []
    for name, (raw, _) in bad.items():
        path = tmp_path / name.replace(" ", "_")
        path.write_bytes(raw)
        large = {**CONTRACT, "height": 4096, "width": 4096} if name == "strip" else CONTRACT
        cases.append((path, large))
    for got, (name, (_, told)) in zip(ask(cases), bad.items(), strict=True):
        assert isinstance(got, str) and told in got, (name, got)


def test_a_palette_shorter_than_its_numbers_is_black_beyond(ask: Ask, tmp_path: Path) -> None:
    """Which memory the decoder would read there is nobody's choice."""
    header = struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0, 1, 2, 255]))
    path = tmp_path / "a.png"
    parts = (
        chunk(b"IHDR", header),
        chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])),
        chunk(b"IDAT", pixels),
        chunk(b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    (got,) = ask([(path, WHOLE)])
    assert list(got) == [9, 8, 7, 6, 5, 4, *[0] * 6]


def test_the_decoder_is_the_published_one() -> None:
    """Changed by nobody here: what a reader of its licence and its version expects."""
    text = (CXX / "stb_image.h").read_text(encoding="utf-8")
    assert text.startswith("/* stb_image - v2.30 - public domain image loader") and len(text) == 283010
