"""Run the model of this bundle on images, with nothing but numpy, pillow and its runtime.

python runner/run.py photo.jpg [more.jpg ...] [--effort fast] [--threads 1] [--json]
python runner/run.py --check        every file's sha256, and the golden inputs against their expected outputs

What it loads or runs is compared with manifest.json first, in size and sha256. That finds damage; whether the manifest
is its author's own it cannot tell: run what came from a stranger only where you would run his program. Memory and
time of a run are limited, so that a model that means harm ends in one message.
"""

# ruff: noqa: E402
import os
import sys

# Nothing that lies beside this file is imported in place of what it needs.
sys.path[:] = [place for place in sys.path if os.path.realpath(place) != os.path.split(os.path.realpath(__file__))[0]]

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import stat
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
MISSING = 18  # exit code, the native runner's too
INSTALL = f"install what it needs: python -m pip install -r {ROOT / 'requirements.txt'}"

try:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    print(f"{error}; {INSTALL}", file=sys.stderr)
    sys.exit(MISSING)

# Whatever a file is called: an EPS named .jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
IMAGE_BYTES, IMAGE_PIXELS, IMAGE_SIDE, IMAGE_SCANS = 256 << 20, 89_478_485, 65_535, 32  # the most that are taken in
MANIFEST_BYTES = 16 << 20
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"  # how they begin
SIZED = frozenset({*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xF0), 0xFE})  # JPEG's markers with a length
IMAGE_PARTS, PPM_HEADER_BYTES = 65_536, 4096
GOLDEN = ("image", "logits", "gates")  # what every golden case has
RESIZED_PIXELS = 1 << 26  # a strip of 1 x 5000 pixels would become one of 224 x 1120000
MOST_THREADS = 1024
RUN_SECONDS = 600  # that loading may take, and each run
# Memory: what twice the stated bound, so many times the files' size, and so much a thread come on top of.
RUN_BYTES, RUN_EXPANSION, RUN_THREAD_BYTES, RUN_BOUND_BYTES = 2 << 30, 8, 16 << 20, 16 << 30
# That memory ran out, as Python, NumPy, the C++ library and the runtimes say it.
NO_MEMORY = re.compile(
    "MemoryError|Unable to allocate|bad_?alloc|Cannot allocate memory|an.t allocate memory|not enough memory"
    "|could not create a primitive|Failed to allocate|failed to map segment|out of memory|an.t start new thread",
    re.IGNORECASE,
)
# C0, DEL, C1, and what changes the direction of writing: no name steers the terminal.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
RELEASE = re.compile(r"[0-9]+(?:\.(?:post)?[0-9]+)*")  # of a version
WRONG_IMAGE = 15  # exit code, the native runner's too
DAMAGED = 19  # exit code, the native runner's too
STARTED: list[subprocess.Popen[bytes]] = []  # to be ended with this process
TOLD: dict[str, float] = {}  # `milliseconds` of the last run, where a program that was started tells them itself
# Logits, gates and, where the number of tokens follows the image, tokens.
Run = Callable[[NDArray[np.uint8], float], Sequence[NDArray[Any]]]


def main() -> int:
    """Parse the arguments, check the files, run, print."""
    warnings.filterwarnings("ignore", module="PIL")  # what it remarks about odd metadata, a line for each tag
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of classes and files on any terminal
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help=f"image files: {', '.join(FORMATS)}")
    parser.add_argument("--effort", default="0", help="0 as calibrated, above it more work, below less; or a name")
    parser.add_argument("--threads", type=int, help="threads of a run (default: the target's)")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")
    parser.add_argument("--check", action="store_true", help="check the bundle instead of running images")
    parser.add_argument("--any-version", action="store_true", help="run with another version of the runtime too")
    arguments = parser.parse_args(joined(sys.argv[1:]))
    if not arguments.images and not arguments.check:
        parser.error("give at least one image, or --check")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS or arguments.top < 1:
        parser.error(f"--threads is 1 to {MOST_THREADS}, --top 1 or more")
    manifest = read_manifest()
    try:
        threads = checked(manifest, arguments, parser)
    except OSError as error:
        refuse(f"a file of it cannot be read ({error})")
    except Exception as error:  # a value of another kind than edgevit writes
        refuse(f"manifest.json is not what edgevit writes ({type(error).__name__}: {error})")
    try:
        return work(manifest, threads, arguments)
    except OSError:  # nobody reads what is printed, or the disk is full
        raise
    except ImportError as error:
        print(escaped(f"{error}; {INSTALL}"), file=sys.stderr)
        return MISSING
    except Exception as error:  # the runtimes' exceptions share no base class of their own
        told = f"{type(error).__name__}: {error}"
        words = "it needs more memory than a bundle of its size may take" if NO_MEMORY.search(told) else told[:2000]
        refuse(f"its model does not run ({words})")


def joined(words: Sequence[str]) -> list[str]:
    """Return the words with `--effort -inf` as one of them: argparse takes what begins with '-' for an option."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--effort" and re.match(r"-[^-]", word):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def checked(manifest: dict[str, Any], arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Hold the files against the manifest, the arguments too; limit this process, and return the threads of a run."""
    used = used_files(manifest)
    changed = changed_files(manifest, ("",) if arguments.check else used)
    if changed:
        refuse(f"{', '.join(changed)} differ from manifest.json")
    threads = arguments.threads or manifest["target"]["threads"]
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        refuse(f"its target has {threads!r} threads, allowed: 1 to {MOST_THREADS}")
    arguments.effort = effort_of(arguments.effort, manifest, parser)
    if not arguments.any_version:
        check_version(manifest)
    confine(manifest, threads)
    return threads


def effort_of(asked: str, manifest: dict[str, Any], parser: argparse.ArgumentParser) -> float:
    """Return the effort that was asked for, as a number or by the name of one of the bundle's operating points.

    No name stands for another number than it says.
    """
    if manifest.get("effort", 0) is None and asked != "0":
        parser.error("this bundle runs the same for every image, so it takes no effort; omit --effort")
    named = {point["name"]: float(point["effort"]) for point in manifest.get("points", ()) if point["name"]}
    try:
        effort = float(asked)
    except ValueError:
        has = f"it has {', '.join(named)}" if named else "it has none"
        if asked not in named:
            parser.error(escaped(f"this bundle has no operating point {asked!r}: {has}; --effort takes a number too"))
        effort = named[asked]
    if math.isnan(effort):
        parser.error("--effort is a number or the name of an operating point, got nan")
    return effort


def check_version(manifest: dict[str, Any]) -> None:
    """End where another version of the runtime is installed than the one that the bundle was verified with."""
    try:
        found = importlib.metadata.version(RUNTIME) if RUNTIME else ""
    except importlib.metadata.PackageNotFoundError:  # missing, which is said when it is loaded; or installed otherwise
        return
    here, proven = (RELEASE.match(version) for version in (found, manifest["tools"].get(RUNTIME, "")))
    if here and proven and here[0] != proven[0]:
        print(
            f"{RUNTIME} {here[0]} is installed; this bundle was verified, its memory proven, with {proven[0]}; "
            f"{INSTALL}, or go on with --any-version",
            file=sys.stderr,
        )
        sys.exit(MISSING)


def work(manifest: dict[str, Any], threads: int, arguments: argparse.Namespace) -> int:
    """Load the model, and run the golden inputs or the images."""
    with in_time():
        run = load_model(manifest, threads)
    if arguments.check:
        return check_golden(manifest, run)
    status = 0
    for path in arguments.images:
        try:
            image = read_image(path, manifest["input"]["preprocessing"])
        except Exception as error:  # Pillow raises nearly anything for a damaged file
            print(escaped(f"{path}: {error or type(error).__name__}"), file=sys.stderr)
            status = WRONG_IMAGE
        else:
            with in_time():
                classify(manifest, run, path, image, arguments)
    return status


def confine(manifest: dict[str, Any], threads: int) -> None:
    """Hold this process, and what it starts, to the memory that a bundle of its size may take; where a system can."""
    try:
        import resource
    except ImportError:
        return
    stated = min(max(manifest["bound"]["bound_bytes"], 0), RUN_BOUND_BYTES)
    most = RUN_BYTES + 2 * stated + RUN_EXPANSION * sum(file["bytes"] for file in manifest["files"])
    most += RUN_THREAD_BYTES * max(threads, os.cpu_count() or 1)
    most = min(most, max(RUN_BYTES, proc_bytes("meminfo", "MemAvailable") or most))
    most += proc_bytes("self/status", "VmData")
    for kind, limit in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(kind, (limit, limit))


def proc_bytes(file: str, field: str) -> int:
    """Return a figure of memory that the kernel tells; 0 if it does not."""
    path = Path("/proc") / file
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(rf"{field}:\s*(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """End this process if the context is not left within RUN_SECONDS: native code cannot be interrupted otherwise."""

    def end() -> None:
        for process in STARTED:
            process.kill()
        print(f"this bundle is damaged: its model did not end within {RUN_SECONDS} s; copy it again", file=sys.stderr)
        sys.stderr.flush()
        os._exit(DAMAGED)

    alarm = threading.Timer(RUN_SECONDS, end)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def refuse(reason: str) -> NoReturn:
    """End for a bundle that is not what it was."""
    print(escaped(f"this bundle is damaged: {reason}; copy it again"), file=sys.stderr)
    sys.exit(DAMAGED)


def read_manifest() -> dict[str, Any]:
    """Return `manifest.json`, if it is what was written."""
    try:
        raw = read_bytes(ROOT / "manifest.json", MANIFEST_BYTES)
        manifest: dict[str, Any] = json.loads(raw)
        digest = manifest.get("sha256", "")
        whole = not digest or hashlib.sha256(raw.replace(digest.encode(), b"", 1)).hexdigest() == digest
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        refuse(f"manifest.json cannot be read ({error})")
    if not whole:
        refuse("manifest.json was changed since it was written")
    return manifest


def used_files(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return how the paths of all files begin that are loaded or run to classify an image.

    What is read by its name is refused where the manifest does not list it: nobody would have checked it.
    """
    named = [manifest["model"], *([manifest["labels"]] if manifest["labels"] else [])]
    named += [case[key] for case in manifest["golden"] for key in (*GOLDEN, "tokens") if case.get(key)]
    unlisted = sorted(set(named) - {file["path"] for file in manifest["files"]})
    if unlisted:
        refuse(f"manifest.json does not list {', '.join(unlisted)}, which it uses")
    folder, _, model = manifest["model"].rpartition("/")
    own = f"{folder}/" if folder else model.rpartition(".")[0] + "."
    return (own, *USED, *([manifest["labels"]] if manifest["labels"] else []))


def changed_files(manifest: dict[str, Any], begin: tuple[str, ...]) -> list[str]:
    """Files whose path begins so that are missing, not listed, or of another size or sha256 than the manifest says."""
    listed = {file["path"]: file for file in manifest["files"] if file["path"].startswith(begin)}
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_symlink() or not path.is_dir()}
    there = {name for name in there - {"manifest.json"} if name.startswith(begin)}
    return sorted(name for name in there | set(listed) if name not in listed or not intact(ROOT / name, listed[name]))


def intact(path: Path, listed: dict[str, Any]) -> bool:
    """Return whether a file is a plain one of the size and sha256 that the manifest lists."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != listed["bytes"]:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == str(listed["sha256"])


def read_image(path: Path, contract: dict[str, Any]) -> NDArray[np.uint8]:
    """Return an image file as the model's input."""
    raw = read_bytes(path)
    check_header(raw)
    try:
        opened = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        raise OSError(f"cannot identify it as an image of these formats: {', '.join(FORMATS)}") from None
    with opened as file:
        if file.width * file.height > IMAGE_PIXELS or max(file.size) > IMAGE_SIDE:
            raise ValueError(f"{file.width} x {file.height} pixels, allowed: {IMAGE_PIXELS}, {IMAGE_SIDE} a side")
        if file.format in ("JPEG", "MPO") and raw.count(b"\xff\xda") > IMAGE_SCANS:
            raise ValueError(f"{raw.count(bytes((0xFF, 0xDA)))} scans, allowed: {IMAGE_SCANS}")
        return prepare(to_rgb(file), contract)


def check_header(raw: bytes) -> None:
    """Refuse a JPEG, PNG or PPM whose header Pillow would read for minutes, a part or byte at a time."""
    if raw.startswith((JPEG, PNG)):
        if count_parts(raw, IMAGE_PARTS) > IMAGE_PARTS:
            raise ValueError(f"more than {IMAGE_PARTS} parts of its header")
    elif re.match(rb"P[123]\s", raw):
        raise ValueError("a PPM written as text (P1, P2, P3), which takes long to read; save it as PNG or binary PPM")
    elif re.match(rb"P[0456fFy]\s", raw) and len(raw) > PPM_HEADER_BYTES:
        words = re.sub(rb"#[^\r\n]*", b"", raw[:PPM_HEADER_BYTES]).split(maxsplit=3)
        if len(words) < (3 if raw.startswith(b"P4") else 4):
            raise ValueError(f"its header has more than {PPM_HEADER_BYTES} bytes")


def count_parts(raw: bytes, most: int) -> int:
    """Count segments of a JPEG's header, or chunks of a PNG, and bytes that only fill up; not far beyond `most`."""
    count, at = 0, 8 if (png := raw.startswith(PNG)) else 2
    while count <= most and at + 1 < len(raw):
        count += 1
        marker = raw[at + 1]
        if png:
            at += 12 + int.from_bytes(raw[at : at + 4], "big")
        elif raw[at] != 0xFF or marker in (0, 0xFF):
            at += 1
        elif marker == 0xDA:  # pixels
            break
        else:
            at += 2 + (int.from_bytes(raw[at + 2 : at + 4], "big") if marker in SIZED else 0)
    return count


def read_bytes(path: Path, most: int = IMAGE_BYTES) -> bytes:
    """Return a regular file of bounded size; a pipe would wait for ever, a device never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a folder, pipe or device, and only regular files are read")
    # Not blocking: should it have become a pipe since, opening it must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = b"" if size > most else file.read(most + 1)
    if max(size, len(raw)) > most:
        raise ValueError(f"it has {max(size, len(raw))} bytes, allowed: {most}")
    return raw


def escaped(text: str) -> str:
    """Return the text with control characters written out."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_rgb(file: Image.Image) -> Image.Image:
    """Return RGB of the first frame; grey of more than 8 bits is scaled, which Pillow would clip."""
    if file.mode == "F":
        raise ValueError("float values, whose range the file does not say; scale them to 0..255 and save 8 bits")
    if file.mode != "I" and not file.mode.startswith("I;"):
        return file.convert("RGB")
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]  # a PNG's and a PPM's values are brought to 16 bits
    if bits > 16 or tags.get(SAMPLE_FORMAT, (1,))[0] != 1:
        raise ValueError(f"integers of {bits} bits, whose range the file does not say; scale to 0..255, save 8 bits")
    most = (1 << bits) - 1
    values = np.asarray(file)
    levels = np.empty(values.shape, dtype=np.uint8)
    for first in range(0, len(values), 64):  # rows at a time, so that no copies of a large image pile up
        rows = values[first : first + 64].astype(np.uint32)
        levels[first : first + 64] = ((most - rows if tags.get(PHOTOMETRIC) == 0 else rows) * 255 + most // 2) // most
    picture = Image.fromarray(levels).convert("RGB")
    picture.info.update(file.info)
    return picture


def prepare(picture: Image.Image, contract: dict[str, Any]) -> NDArray[np.uint8]:
    """Turn, resize and crop or pad as the manifest says: RGB picture to uint8 `[1, height, width, 3]`."""
    if contract["orientation"] == "apply":
        picture = ImageOps.exif_transpose(picture)
    height, width, crop_pct = contract["height"], contract["width"], contract["crop_pct"]
    target_width, target_height = math.floor(width / crop_pct), math.floor(height / crop_pct)
    ratios = picture.height / target_height, picture.width / target_width
    mode = contract["crop_mode"]
    if mode == "squash":
        size = (target_width, target_height)
    elif mode == "center" and target_width == target_height:
        short = target_width
        if picture.width <= picture.height:
            size = (short, int(short * picture.height / picture.width))
        else:
            size = (int(short * picture.width / picture.height), short)
    else:
        ratio = max(ratios) if mode == "border" else min(ratios)
        size = (round(picture.width / ratio), round(picture.height / ratio))
    if not 0 < size[0] * size[1] <= RESIZED_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels is no shape to crop a square from")
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling[contract["interpolation"].upper()])
    left, top = (
        round((have - need) / 2) if have >= need else -((need - have) // 2)
        for have, need in zip(size, (width, height), strict=True)
    )
    fill = tuple(round(255 * v) for v in contract["mean"]) if mode == "border" else (0, 0, 0)
    cropped = Image.new("RGB", (width, height), fill)
    cropped.paste(picture, (-left, -top))
    return np.asarray(cropped, dtype=np.uint8)[None]


def lacks_vnni() -> bool:
    """Return whether this is an x86 CPU that adds int8 products in 16 bits."""
    cpu = Path("/proc/cpuinfo")
    x86 = platform.machine() in ("x86_64", "AMD64") and cpu.is_file()
    return x86 and "vnni" not in cpu.read_text(encoding="utf-8", errors="replace")


# What stands here belongs to the runtime: a bundle's runner has the part that its backend gives in place of it.
# ---- runtime ----
RUNTIME = ""  # its package, if it is installed apart
USED: tuple[str, ...] = ()


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Load the model; the function takes an image and an effort, gives logits and gates, perhaps tokens."""
    raise NotImplementedError("this is the common part of a bundle's runner; run the bundle's own runner/run.py")


# ---- end of what belongs to the runtime ----


def classify(
    manifest: dict[str, Any], run: Run, path: Path, image: NDArray[np.uint8], arguments: argparse.Namespace
) -> None:
    """Run one image and print its best classes (or the model's features), which branches ran, and the time."""
    begin = time.perf_counter()
    logits, gates, *left = run(image, arguments.effort)
    milliseconds = TOLD.get("milliseconds", 1000 * (time.perf_counter() - begin))
    features = manifest["outputs"][0]["kind"] == "features"
    answer = {"features": logits[0].tolist()} if features else {"top": best_classes(manifest, logits[0], arguments.top)}
    if arguments.json:
        ran = {"gates": gates.tolist()} | ({"tokens": left[0].tolist()} if left else {})
        print(json.dumps({"image": str(path), **answer, **ran, "milliseconds": milliseconds}))
        return
    print(f"{escaped(str(path))}  {milliseconds:.1f} ms  {int(gates.sum())} of {gates.size} branches ran")
    if features:
        print(f"  {logits.size} features, no classes, length {np.linalg.norm(logits):.4g}; --json prints them")
    for row in answer.get("top", ()):
        likely = f"{row['score']:8.3f}" if row["probability"] is None else f"{row['probability']:6.1%}"
        print(f"  {likely}  {row['class']:>4}  {escaped(row['label'] or '')}")
    shown = "".join("x" if gate else "." for gate in gates)
    print(f"  gates [{shown}]  x = ran, . = skipped, in the order of the manifest's branches")
    if left:
        print(f"  tokens {', '.join(map(str, left[0]))}  patch tokens left after each point where they merge")


def best_classes(manifest: dict[str, Any], logits: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """Return the classes with the largest scores; one class alone has no probability."""
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    labels = json.loads((ROOT / manifest["labels"]).read_text(encoding="utf-8")) if manifest["labels"] else None
    return [
        {
            "class": int(i),
            "label": labels[i] if labels else None,
            "score": float(logits[i]),
            "probability": float(probabilities[i]) if logits.size > 1 else None,
        }
        for i in np.argsort(-logits, kind="stable")[:count]
    ]


def check_golden(manifest: dict[str, Any], run: Run) -> int:
    """Run the golden inputs; 0 if every output is the expected one within the manifest's tolerance."""
    failed = 0
    for case in manifest["golden"]:
        keys = [*GOLDEN, *(["tokens"] if case.get("tokens") else [])]
        image, logits, *counted = (np.load(ROOT / case[key], allow_pickle=False) for key in keys)
        with in_time():
            got_logits, *got = run(image, case["effort"])
        error = float(np.abs(got_logits - logits).max())
        other = [k for k, a, b in zip(keys[2:], counted, got, strict=False) if not np.array_equal(a, b)]
        other += keys[2 + len(got) :]
        good = error <= manifest["golden_tolerance"] and not other
        failed += not good
        words = f", other {' and '.join(other)}" if other else ""
        line = f"{'ok    ' if good else 'FAILED'} {case['path']}: largest logit difference {error:.3g}{words}"
        print(escaped(line))
    print(f"{len(manifest['files'])} files intact, {len(manifest['golden']) - failed} golden outputs as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
