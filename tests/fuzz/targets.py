"""What is fuzzed: every reader of files that others wrote, each as a function of bytes.

A reader takes whatever bytes and returns, or raises an EdgevitError: no other exception, and within 5 CPU seconds and
1 GiB. Readers are imported when they are asked for, so that the fuzzer can watch which of their lines run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import resource
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

Read = Callable[[bytes], object]
Prepare = Callable[[Path], Read]

MOST_SECONDS = 5.0
MOST_BYTES = 1 << 30
IMAGE = "a.png"  # what an image list may name
TARGET_NAME = "fuzzed"  # a target's own name must be its file's
ENDS = (2, 15, 18, 19)  # exit codes of `run.py` where nothing ran


class TooMuchError(Exception):
    """An input took more time or memory than any may."""


def held(name: str, folder: Path) -> Read:
    """The reader of a target, which raises whatever is to be found: what is no EdgevitError, and TooMuchError.

    Args:
        name: one of `TARGETS`.
        folder: an empty folder for the files that inputs become.
    """
    read = TARGETS[name](folder)
    from edgevit.errors import EdgevitError

    most = _peak_bytes() + MOST_BYTES

    def one(data: bytes) -> None:
        begin = time.process_time()
        try:
            read(data)
        except EdgevitError as error:
            if not str(error):
                raise
        seconds, peak = time.process_time() - begin, _peak_bytes()
        if seconds > MOST_SECONDS:
            raise TooMuchError(f"{seconds:.1f} s, allowed: {MOST_SECONDS:g} s")
        if peak > most:
            raise TooMuchError(f"{(peak - most + MOST_BYTES) >> 20} MiB, allowed: {MOST_BYTES >> 20} MiB")

    return one


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _weights(suffix: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from edgevit.frontends.checkpoint import load_checkpoint

        return _from_file(folder / f"weights{suffix}", load_checkpoint)

    return prepare


def _hub(folder: Path) -> Read:
    from edgevit.frontends.own_weights import own_program

    return _from_folder(folder, lambda: own_program(None, folder))


def _program(folder: Path) -> Read:
    from edgevit.program.program import load_program

    return _from_folder(folder, lambda: load_program(folder))


def _bundle(path: Path, whole: Path) -> Read:
    """A bundle that opens gives its golden arrays too."""
    from edgevit.bundle.read import load_golden, open_bundle

    def read(_: Path) -> None:
        with open_bundle(whole) as bundle:
            for case in bundle.manifest.golden:
                load_golden(bundle, case)

    return _from_file(path, read)


def _image(folder: Path) -> Read:
    from edgevit.images.image_set import load_images
    from tests.pictures import SPEC

    return _from_file(folder / "picture.jpg", lambda path: load_images(path, SPEC))


def _images(name: str) -> Prepare:
    """Images in one file: labels are asked for where the file has an even number of bytes."""

    def prepare(folder: Path) -> Read:
        from edgevit.images.image_set import load_images
        from tests.pictures import SPEC, picture_bytes

        (folder / IMAGE).write_bytes(picture_bytes(size=(8, 9)))
        return _from_file(
            folder / name, lambda path: load_images(path, SPEC, limit=8, labelled=path.stat().st_size % 2 == 0)
        )

    return prepare


def _target(folder: Path) -> Read:
    from edgevit.schema.target import load_target

    return _from_file(folder / f"{TARGET_NAME}.toml", load_target)


def _recipe(folder: Path) -> Read:
    from edgevit.compress.training.recipe import load_recipe

    return _from_file(folder / "recipe.toml", load_recipe)


def _measurement(folder: Path) -> Read:
    from edgevit.schema.measurement_file import read_measurement

    return _from_file(folder / "measurement.json", read_measurement)


def _report(folder: Path) -> Read:
    """A bundle and a measurement of it, in every form in which a report is shown."""
    from rich.console import Console

    from edgevit.bundle.read import open_bundle
    from edgevit.cli.terminal import plain
    from edgevit.report.html import render as render_html
    from edgevit.report.json import render as render_json
    from edgevit.report.lines import lines
    from edgevit.report.table import show
    from edgevit.report.view import make_report
    from edgevit.schema.measurement_file import read_measurement

    def read() -> None:
        measurement = read_measurement(folder / "measurement.json")
        with open_bundle(folder / "bundle.zip") as bundle:
            report = make_report(bundle.manifest, [measurement], bundle_sha256=measurement.bundle_sha256)
        render_html(report), render_json(report), tuple(lines(measurement))
        show(plain(report), Console(file=io.StringIO()))

    return _from_folder(folder, read)


def _device(folder: Path) -> Read:
    from edgevit.devices.qemu.userland import NAME, RECORD, installed

    (folder / NAME).mkdir()

    def read(_: Path) -> None:
        with patch.dict(os.environ, {"EDGEVIT_DEVICES": str(folder)}):
            installed()

    return _from_file(folder / NAME / RECORD, read)


def _model_json(folder: Path) -> Read:
    from edgevit.backends.tvm.run.runner import read_manifest

    return _from_file(folder / "model.json", read_manifest)


def _signature(folder: Path) -> Read:
    """The signature of a bundle, and the public key that it is checked with: the one that is no JSON."""
    from edgevit.bundle import signature
    from edgevit.bundle.read import open_bundle
    from edgevit.schema.manifest import Bundle
    from tests.fuzz.seeds import signed_bundle

    signed_bundle(folder)
    with open_bundle(folder / "bundle") as opened:
        bundle: Bundle = opened

    def read(path: Path) -> None:
        pair = folder / "my.pub", folder / "bundle.sig"
        key, made = (pair[0], path) if path.read_bytes()[:1] in (b"{", b"[") else (path, pair[1])
        signature.check(bundle, key, made)

    return _from_file(folder / "fuzzed", read)


def _options(folder: Path) -> Read:
    """Texts of the command line that have a grammar of their own: a word that says which, and the text."""
    from edgevit.program.tokens import read_plan, with_merges
    from edgevit.report.limits import read_limit
    from edgevit.schema.budget import read_budget
    from edgevit.schema.points import effort_of
    from tests.tiny import tiny_spec

    spec = tiny_spec(depth=4, image=(64, 64))
    readers: dict[str, Callable[[str], object]] = {
        "limit": read_limit,
        "tokens": lambda text: with_merges(spec, read_plan(text, spec)),
        "budget": read_budget,
        "effort": lambda text: effort_of(text, (), "a bundle"),
    }

    def one(data: bytes) -> None:
        word, _, text = data.decode(errors="surrogateescape").partition(" ")
        if word in readers:
            readers[word](text)

    return one


def _run_py(folder: Path) -> Read:
    """The manifest as a bundle's own runner reads it, all but the model; odd inputs run images, even ones --check."""
    import sys

    from edgevit.bundle import runner
    from tests.fuzz.seeds import sample

    place = sample(folder)
    (folder / IMAGE).write_bytes((place / "golden" / "real.image.npy").read_bytes())
    words = (["--check"], [str(folder / IMAGE), "--effort", "fast"])

    def read(path: Path) -> None:
        with (
            patch.object(runner, "ROOT", place),
            patch.object(sys, "argv", ["run.py", *words[path.stat().st_size % 2]]),
            patch.object(runner, "load_model", lambda *_: lambda image, effort: ([], [])),
            patch("resource.setrlimit"),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            try:
                runner.main()
            except SystemExit as ended:
                if ended.code not in ENDS or "\x1b" in said.getvalue():
                    raise ValueError(f"ended with {ended.code}: {said.getvalue()}") from None

    return _from_file(place / "manifest.json", read)


def _from_file(path: Path, read: Callable[[Path], object]) -> Read:
    times = itertools.count(1)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        now = next(times)  # what is kept by a file's time must not be an earlier input's
        os.utime(path, ns=(now, now))
        read(path)

    return one


def _from_folder(folder: Path, read: Callable[[], object]) -> Read:
    """Inputs are zips of the folder's files; of one that is no zip the folder is empty."""
    files = (
        *("config.json", "preprocessor_config.json", "README.md", "model.safetensors", "model.safetensors.index.json"),
        *("one.safetensors", "two.safetensors"),
        *("program.json", "weights.safetensors", "bundle.zip", "measurement.json"),
    )

    def one(data: bytes) -> None:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for name, raw in unzipped(data).items():
            if name in files:
                (folder / name).write_bytes(raw)
        read()

    return one


def unzipped(data: bytes) -> dict[str, bytes]:
    """The stored members of a small zip by name; none of what is no zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = [m for m in archive.infolist() if m.compress_type == zipfile.ZIP_STORED]
            return {m.filename: archive.read(m) for m in stored}
    except Exception:  # whatever a damaged zip makes the library raise
        return {}


def digest(data: bytes) -> str:
    """The name under which an input is kept."""
    return hashlib.sha256(data).hexdigest()[:16]


TARGETS: Mapping[str, Prepare] = {
    "weights-safetensors": _weights(".safetensors"),
    "weights-torch": _weights(".pth"),
    "weights-jax": _weights(".npz"),
    "weights-hub-folder": _hub,
    "program": _program,
    "manifest": lambda folder: _bundle(folder / "manifest.json", folder),
    "bundle-zip": lambda folder: _bundle(folder / "bundle.zip", folder / "bundle.zip"),
    "target": _target,
    "recipe": _recipe,
    "image": _image,
    "image-list": _images("list.toml"),
    "images-tar": _images("images.tar"),
    "images-zip": _images("images.zip"),
    "images-npz": _images("images.npz"),
    "measurement": _measurement,
    "report": _report,
    "device-file": _device,
    "model-json": _model_json,
    "signature": _signature,
    "options": _options,
    "run-py": _run_py,
}
