"""Images and archives made to hang, to fill the memory or to crash are one error, soon and in little memory."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.errors import ImagesError
from edgevit.images import sources
from edgevit.images.image_set import UnreadableImage, decode, load_images
from edgevit.images.sources import list_images
from edgevit.util.limits import IMAGE_BYTES, IMAGE_SCANS, TEXT_BYTES, ZIP_DIRECTORY_BYTES, Limit
from tests.pictures import SPEC, npz, picture_bytes

pytestmark = pytest.mark.usefixtures("little_memory")
Make = Callable[[Path], object]


def holed(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of `size` bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path


def zipped(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in members:
            archive.writestr(zipfile.ZipInfo(name), raw, method)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert old in raw
    assert len(old) == len(new)
    path.write_bytes(raw.replace(old, new))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, pax: dict[str, str] | None = None) -> bytes:
    """The header of a tar's member alone."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.pax_headers = kind, size, pax or {}
    return info.tobuf(tarfile.PAX_FORMAT)


def tarred(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts) + bytes(1024))
    return path


def negative(name: str) -> bytes:
    """A header whose size is -512, as the binary form of a size allows; a reader that believes it never ends."""
    raw = bytearray(member(name))
    raw[124:136] = b"\xff" * 10 + b"\xfe\x00"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def crowded_zip(path: Path) -> Path:
    """A directory of many empty entries that are all the same local file."""
    name = b"0.png"
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    count = ZIP_DIRECTORY_BYTES.value // len(entry) + 1
    size = count * len(entry)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, size, 0, 0)
    path.write_bytes(entry * count + end)
    return path


def bomb(path: Path, **arrays: tuple[str, int]) -> Path:
    """An .npz whose arrays are all zeros, given as dtype and count."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, (kind, count) in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                header = {"descr": kind, "fortran_order": False, "shape": (count,)}
                np.lib.format.write_array_header_1_0(file, header)
                left = count * np.dtype(kind).itemsize
                while left:
                    file.write(bytes(min(left, 1 << 20)))
                    left -= min(left, 1 << 20)
    return path


def lying(path: Path, header: bytes) -> Path:
    """An .npz whose array has a header of its own making."""
    npy = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
    return zipped(path, [("jpeg.npy", npy), ("offset.npy", npy)])


PICTURE = picture_bytes()
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png", "GNU.sparse.realsize": "9"}
SOURCES: list[tuple[str, Make, str]] = [
    ("pipe.jpg", pipe, "it is a pipe"),
    ("pipe.tar", pipe, "it is a pipe"),
    ("pipe.zip", pipe, "it is a pipe"),
    ("pipe.npz", pipe, "it is a pipe"),
    ("pipe.toml", pipe, "it is a pipe"),
    ("zero.jpg", partial(link, to="/dev/zero"), "it is a device"),
    ("zero.tar", partial(link, to="/dev/zero"), "it is a device"),
    ("zero.toml", partial(link, to="/dev/zero"), "it is a device"),
    ("loop.jpg", partial(link, to="loop.jpg"), "symbolic links"),
    ("big.jpg", partial(holed, size=3 << 30), f"allowed for an image file: {IMAGE_BYTES.value} bytes"),
    ("big.toml", partial(holed, size=TEXT_BYTES.value + 1), "allowed for a text file"),
    (f"{'n' * 300}.jpg", lambda path: path, "File name too long"),
    ("twice.zip", lambda p: pytest.warns(UserWarning, zipped, p, [("a.png", PICTURE)] * 2), "'a.png' twice"),
    ("slashes.zip", lambda p: zipped(p, [("a/b.png", PICTURE), ("a\\b.png", PICTURE)]), "'a/b.png' twice"),
    ("lzma.zip", lambda p: zipped(p, [("a.png", PICTURE)], zipfile.ZIP_LZMA), "compressed by method 14"),
    ("bzip.zip", lambda p: zipped(p, [("a.png", PICTURE)], zipfile.ZIP_BZIP2), "compressed by method 12"),
    ("absolute.zip", lambda p: patched(zipped(p, [("tmp.png", PICTURE)]), b"tmp.png", b"/mp.png"), "outside"),
    ("drive.zip", lambda p: zipped(p, [("c:/a.png", PICTURE)]), "outside"),
    ("crowded.zip", crowded_zip, "allowed: 16777216 bytes"),
    ("long.zip", lambda p: zipped(p, [("d/" * 4000 + "a.png", PICTURE)]), "longer than 4096 characters"),
    (
        "half.zip",
        lambda p: p.write_bytes(zipped(p, [("a.png", PICTURE)]).read_bytes()[:-30]),
        "cannot be read as a zip",
    ),
    ("empty.zip", lambda p: p.write_bytes(b""), "cannot be read as a zip"),
    ("holed.zip", partial(holed, size=1 << 33), "cannot be read as a zip"),
    ("twice.tar", lambda p: tarred(p, member("a.png"), member("./a.png")), "'a.png' twice"),
    ("sparse.tar", lambda p: tarred(p, member("a.png", tarfile.GNUTYPE_SPARSE)), "special file"),
    ("pax.tar", lambda p: tarred(p, member("a.png", pax=SPARSE)), "special file|cannot be read"),
    ("digits.tar", lambda p: tarred(p, member("a.png", size=512, pax=SPARSE), b"9" * 512), "cannot be read"),
    ("nul.tar", lambda p: tarred(p, member("b.png", pax={"path": "a\0.png"})), "holds NUL"),
    ("huge.tar", lambda p: holed(p, 1 << 33, member("x", tarfile.XHDTYPE, 1 << 32)), "allowed: 1048576 bytes"),
    ("name.tar", lambda p: holed(p, 1 << 33, member("x", tarfile.GNUTYPE_LONGNAME, 1 << 32)), "1048576 bytes"),
    ("chain.tar", lambda p: tarred(p, *[member("x", tarfile.XHDTYPE)] * 5000), "cannot be read as an uncompressed tar"),
    ("negative.tar", lambda p: tarred(p, *[negative("a.png")] * 3), "do not follow|cannot be read"),
    ("loop.tar", lambda p: tarred(p, member("a.png", tarfile.SYMTYPE)), "a link or a special file"),
    ("device.tar", lambda p: tarred(p, member("a.png", tarfile.CHRTYPE)), "a link or a special file"),
    ("absolute.tar", lambda p: tarred(p, member("/a.png")), "outside"),
    ("half.tar", lambda p: p.write_bytes(member("a.png", size=9999) + PICTURE[:99]), "cannot be read as an unc"),
    ("member.tar", lambda p: holed(p, 1 << 33, member("a.png", size=1 << 32)), "has 4294967296 bytes"),
    ("tars.tar", lambda p: tarred(p, member("a.tar", size=1536), member("a.png"), bytes(1024)), "no images in"),
    ("packed.tar", lambda p: p.write_bytes(zlib.compress(bytes(9999))), "cannot be read as an uncompressed tar"),
    ("bomb.npz", lambda p: bomb(p, jpeg=("|u1", 1 << 30), offset=("<i8", 2)), "times the size of the file"),
    ("offsets.npz", lambda p: bomb(p, jpeg=("|u1", 9), offset=("<i8", 2 << 20)), "1000000 images"),
    ("shape.npz", lambda p: lying(p, b"{'descr':'|u1','fortran_order':False,'shape':(10**9,)}\n"), "cannot be read"),
    ("far.npz", lambda p: lying(p, b"{'descr':'|u1','fortran_order':False,'shape':(99999999999,)}\n"), "has not"),
    ("deep.npz", lambda p: lying(p, b"{'descr':" + b"(" * 9000 + b"}\n"), "cannot be read"),
    ("objects.npz", lambda p: npz(p, [PICTURE], label=np.array([{}], dtype=object)), "plain values"),
    ("again.npz", lambda p: pytest.warns(UserWarning, zipped, p, [("jpeg.npy", b"")] * 2), "each once"),
]


@pytest.mark.parametrize(("name", "make", "said"), SOURCES, ids=[name[:20] for name, *_ in SOURCES])
def test_a_hostile_source_is_one_error(name: str, make: Make, said: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(ImagesError, match=said):
        load_images(tmp_path / name, SPEC)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_more_members_than_allowed_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCE_MEMBERS", Limit(of="members", value=2, unit="members"))
    path = tmp_path / f"many.{kind}"
    if kind == "zip":
        zipped(path, [(f"{i}.png", b"") for i in range(3)])
    else:
        tarred(path, *(member(f"{i}.png") for i in range(3)))
    with pytest.raises(ImagesError, match=r"more than 2 members.*give the folder"):
        list_images(path)


def test_members_of_a_tar_are_listed_whatever_follows_them(tmp_path: Path) -> None:
    path = tarred(tmp_path / "many.tar", *(member(f"{i}.png") for i in range(1000)))
    assert len(list_images(path)) == 1000
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert len(list_images(path)) == 1000


def test_what_is_called_like_an_image_and_is_none_is_told(tmp_path: Path) -> None:
    pipe(tmp_path / "a.jpg")
    link(tmp_path / "b.jpg", "nowhere")
    link(tmp_path / "c.jpg", "c.jpg")
    link(tmp_path / "notes", "nowhere")
    for index in range(40):
        (tmp_path / f"{index}.png").write_bytes(PICTURE)
    loaded = load_images(tmp_path, SPEC)
    assert len(loaded) == 40
    assert [line[:17] for line in loaded.unreadable] == ["a.jpg: it is a pi", "b.jpg: [Errno 2] ", "c.jpg: [Errno 40]"]
    link(tmp_path / "d.jpg", "/dev/zero")
    with pytest.raises(ImagesError, match="leads outside"):
        load_images(tmp_path, SPEC)


ENTRY = '[[image]]\nfile = "{}"\nsha256 = "x"\nsource = "s"\nlicence = "l"\n'
LIST = 'name = "n"\ndescription = "d"\nlicence = "l"\n'


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\\u0000b", "null byte"),
        ("n" * 300, "File name too long"),
        ("pipe.jpg", "it is a pipe"),
        ("loop.jpg", "loop"),
        ("", "it is a folder"),
        ("../a.jpg", "leads outside"),
        ("zero.jpg", "leads outside"),
    ],
)
def test_a_manifest_names_only_files(name: str, said: str, tmp_path: Path) -> None:
    pipe(tmp_path / "pipe.jpg")
    link(tmp_path / "loop.jpg", "loop.jpg")
    link(tmp_path / "zero.jpg", "/dev/zero")
    (tmp_path / "set.toml").write_text(LIST + ENTRY.format(name))
    with pytest.raises(ImagesError, match=said):
        list_images(tmp_path / "set.toml")


def test_of_many_faults_the_first_are_shown(tmp_path: Path) -> None:
    (tmp_path / "set.toml").write_text(LIST + "".join(ENTRY.format(f"{i}.png") for i in range(1000)))
    with pytest.raises(ImagesError, match="has 1000 faults") as caught:
        list_images(tmp_path / "set.toml")
    assert str(caught.value).endswith("... and 980 more")
    assert len(str(caught.value)) < 2000


def png(width: int, height: int) -> bytes:
    """A PNG of which there is only the header and a little data."""
    parts = ((b"IHDR", struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99))))
    chunks = (struct.pack(">L", len(d)) + k + d + struct.pack(">L", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp(width: int, height: int, data: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits."""
    head = struct.pack("<L2l2H6L", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<L2HL", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan again and again, each of which is a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    raw = buffer.getvalue()
    last = raw[raw.rindex(b"\xff\xda") : -2]
    return raw[:-2] + last * (count - raw.count(b"\xff\xda")) + raw[-2:]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (png(1, 10**9), "pixels, allowed"),
        (png(2**31 - 1, 2**31 - 1), "pixels, allowed"),
        (png(70_000, 10), "70000 x 10 pixels, allowed: 89478485 pixels, 65535 a side"),
        (bmp(80_000_000, 1, b"\0\2\xff\xff" * 9), "80000000 x 1 pixels, allowed"),
        (scans(IMAGE_SCANS.value + 1), "33 scans, allowed: 32 scans"),
        (b"P6\n99999 99999\n255\n", "pixels, allowed"),
        (b"P6\n" + b"9" * 5000 + b" 1\n255\n", "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of these formats"),
        (b"GIF89a" + bytes(99), "not an image of these formats"),
    ],
)
def test_a_hostile_image_is_unreadable(raw: bytes, said: str) -> None:
    with pytest.raises(UnreadableImage, match=said):
        decode(raw)


def test_a_usual_progressive_jpeg_is_read() -> None:
    assert decode(scans(12)).size == (64, 64)


def lying_header(path: Path, kind: str) -> Path:
    """A zip whose directory is as it should be, and whose member's own header is not."""
    raw = bytearray(zipped(path, [("\u00e9.png", PICTURE)]).read_bytes())
    if kind == "a name that is no UTF-8":
        raw[30:32] = b"\xff\xfe"  # the first name is the member's own
    else:
        at = raw.rindex(b"PK\1\2") + 42
        raw[at : at + 4] = struct.pack("<L", len(raw) - 9)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("kind", ["a name that is no UTF-8", "a place at the end of the file"])
def test_a_member_with_a_damaged_header_is_an_unreadable_image(kind: str, tmp_path: Path) -> None:
    path = lying_header(tmp_path / "a.zip", kind)
    with pytest.raises(ImagesError, match="1 of 1 images in .* cannot be read"):
        load_images(path, SPEC)
