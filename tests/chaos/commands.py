"""The commands that chaos is tried on, with small models, and how to see what they left: the old, the new, or half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevit.bundle.read import open_bundle
from edgevit.program.program import load_program, save_program
from edgevit.schema.measurement_file import read_measurement
from edgevit.util.resources import shipped
from tests.bundles import sample_bundle
from tests.compressing import dense, files, metrics, photos, recipe, saved
from tests.devices import standins
from tests.tiny import tiny_program

OUT, GIVEN = "out", "given"
Versions = set[int | None]
# An empty folder of a fixed name that torch makes for its compiler, which is not used.
TORCH = "torchinductor_"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line that writes version 1 or 2 of its outputs into a folder's `out`.

    Attributes:
        name: of it.
        arguments: for a folder and a version.
        versions: of the outputs in that folder that belong together, and of others, after checking that each is whole;
            None: it is not there.
        left: the names in `out` when it is done.
        enter: called first in the process of a run, with a folder and a version.
        old: whether version 1 is there before, to be replaced.
    """

    name: str
    arguments: Callable[[Path, int], list[str]]
    versions: Callable[[Path], list[Versions]]
    left: frozenset[str]
    enter: Callable[[Path, int], None] = lambda folder, version: None
    old: bool = True


def prepare(root: Path) -> Path:
    """Make what the commands read, and the folders they write to, in a new folder; returns it."""
    given = root / GIVEN
    given.mkdir(parents=True)
    for name in (OUT, "tmp"):
        (root / name).mkdir()
    for version in (1, 2):
        save_program(tiny_program(gated=True, depth=version), given / f"program{version}")
    saved(dense(), given / "dense")
    photos(given / "photos", each=12)
    for runtime in ("onnxruntime", "openvino", "tvm"):
        (given / f"{runtime}.toml").write_text(_lenient(runtime))
    recipe(given / "short.toml", epochs_joint=1, epochs_recover=1, checkpoint_seconds=0.01, workers=0)
    standins.make(given / "tools")
    sample_bundle(given / "bundle")
    return root


def _lenient(runtime: str) -> str:
    """A target as it ships, but for what a random model cannot promise."""
    name = {"onnxruntime": "x86-64-onnxruntime", "openvino": "x86-64-openvino", "tvm": "x86-64-v3-tvm"}[runtime]
    lines = (shipped("targets") / f"{name}.toml").read_text().splitlines()
    changed = {"min_agreement": "0.0", "max_top1_drop": "1.0", "name": f'"{runtime}"'}
    keys = [line.split(" = ")[0] for line in lines]
    begin = lines.index("[reasons]")
    kept = [
        f"{key} = {changed[key]}" if key in changed and number < begin else line
        for number, (key, line) in enumerate(zip(keys, lines, strict=True))
    ]
    return "\n".join(kept)


def build(runtime: str) -> Command:
    """Builds a bundle and saves the Program."""

    def arguments(folder: Path, version: int) -> list[str]:
        given, out = folder / GIVEN, folder / OUT
        words = ["build", str(given / f"program{version}"), "--target", str(given / f"{runtime}.toml")]
        words += ["--calibration", str(given / "photos"), "--limit", "16", "-o", str(out / "bundle"), "--force"]
        return [*words, "--save-program", str(out / "program"), "--replace-program"]

    def versions(folder: Path) -> list[Versions]:
        out = folder / OUT
        there = (out / "program").exists()
        saved = len(load_program(out / "program").spec.branches) // 2 if there else None
        return [{_bundle(out / "bundle"), _bundle(out / "bundle.zip")}, {saved}]

    return Command(
        name=f"build ({runtime})",
        arguments=arguments,
        versions=versions,
        left=frozenset({"bundle", "bundle.zip", "program"}),
        enter=lambda folder, _: os.environ.update(EDGEVIT_CACHE=str(folder / "cache")),
    )


def _bundle(path: Path) -> int | None:
    """The version of a bundle, every byte of it checked."""
    if not path.exists():
        return None
    with open_bundle(path) as bundle:
        return len(bundle.manifest.branches) // 2


def compress() -> Command:
    """Trains for a second; nothing is replaced, a run goes on from what is there and ends as an undisturbed one."""

    def arguments(folder: Path, version: int) -> list[str]:
        given, out = folder / GIVEN, folder / OUT
        words = ["compress", str(given / "dense"), "--data", str(given / "photos"), "--macs", "0.6"]
        words += ["--recipe", str(given / "short.toml"), "--teacher-cache", str(out / "teacher")]
        return [*words, "--device", "cpu", "-o", str(out / "run"), "--resume"]

    def versions(folder: Path) -> list[Versions]:
        run = folder / OUT / "run"
        if (run / "checkpoint.pt").exists():
            from edgevit.compress.training.checkpoint import load

            load(run / "checkpoint.pt")
        if not (run / "program").exists():
            return [{None}]
        load_program(run / "program")
        undisturbed = folder / GIVEN / "trained"
        whole = (run / "result.json").exists()
        if whole and undisturbed.exists():
            assert files(run / "program") == files(undisturbed / "program"), "another result than an undisturbed run's"
            assert metrics(run) == metrics(undisturbed), "another log than an undisturbed run's"
        return [{2}]

    return Command(
        name="compress",
        arguments=arguments,
        versions=versions,
        left=frozenset({"run", "teacher"}),
        old=False,
    )


def device() -> Command:
    """Sets the emulated device up, with programs that stand in for apt-get, dpkg-deb, pip, qemu and compilers."""

    def versions(folder: Path) -> list[Versions]:
        from edgevit.devices.qemu import userland

        os.environ["EDGEVIT_DEVICES"] = str(folder / OUT)
        if not (folder / OUT / "qemu").exists():
            return [{None}]
        made = userland.installed()
        parts = [made.emulator, made.folder / "root", made.site, *filter(None, (made.plugin, made.accountant))]
        assert all(part.exists() for part in parts), f"the device has no {[p for p in parts if not p.exists()]}"
        return [{int(made.packages["libc6"].split(".")[0])}]

    def enter(folder: Path, version: int) -> None:
        standins.enter(folder / GIVEN / "tools", str(version))
        os.environ["EDGEVIT_DEVICES"] = str(folder / OUT)

    return Command(
        name="device setup",
        arguments=lambda folder, version: ["device", "setup", "qemu"],
        versions=versions,
        left=frozenset({"qemu", ".lock"}),
        enter=enter,
    )


def profile() -> Command:
    """Measures a bundle that is there."""

    def arguments(folder: Path, version: int) -> list[str]:
        words = ["profile", str(folder / GIVEN / "bundle"), "--runs", "5", "--force"]
        return [*words, "--images", str(folder / GIVEN / "photos"), "-o", str(folder / OUT / "measured.json")]

    def versions(folder: Path) -> list[Versions]:
        path = folder / OUT / "measured.json"
        if not path.exists():
            return [{None}]
        read_measurement(path)
        return [{2}]

    return Command(name="profile", arguments=arguments, versions=versions, left=frozenset({"measured.json"}), old=False)


def report() -> Command:
    """Writes the page of a bundle that is there."""

    def arguments(folder: Path, version: int) -> list[str]:
        return ["report", str(folder / GIVEN / "bundle"), "--html", str(folder / OUT / "page.html"), "--force"]

    def versions(folder: Path) -> list[Versions]:
        path = folder / OUT / "page.html"
        if not path.exists():
            return [{None}]
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        return [{2}]

    return Command(name="report", arguments=arguments, versions=versions, left=frozenset({"page.html"}), old=False)


def empty(folder: Path) -> None:
    """Remove what was written."""
    for name in (OUT, "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()


def strays(folder: Path, left: frozenset[str]) -> set[str]:
    """What lies beside the outputs and among the temporary files, and does not belong there."""
    found = {path.name for path in (folder / OUT).iterdir()} - left
    for inner in (folder / OUT).glob("*/"):
        found |= {f"{inner.name}/{path.name}" for path in inner.iterdir() if path.name.startswith((".", "edgevit-"))}
    return found | {f"tmp/{path.name}" for path in (folder / "tmp").iterdir() if not path.name.startswith(TORCH)}
