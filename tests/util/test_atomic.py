"""What is replaced, what is refused, what is left by whom, and what the next start makes of it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevit.build.preflight import Output, ready
from edgevit.bundle.read import open_bundle
from edgevit.bundle.write import refuse_existing
from edgevit.errors import OutputError
from edgevit.util import atomic, renames, strays
from edgevit.util.resources import usable_cache
from edgevit.util.strays import is_stray, stray_name
from tests.bundles import sample_bundle
from tests.killing import bundle, versions_of_bundle

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "ending", [("SIGKILL",), ("SIGKILL", "--no-exchange"), ("SIGTERM",), ("SIGINT",)], ids=" ".join
)
def test_whenever_a_writer_ends_the_old_or_the_new_is_there(ending: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killing", str(tmp_path), *ending]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    moments = json.loads(done.stdout)
    assert moments["bundle"] > 30 and moments["program"] > 15 and moments["file"] > 4


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        p.relative_to(folder).as_posix(): str(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def web_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"name": "app", "schema": 1, "files": []}))
    (folder / "index.html").write_text("<p>years of work")
    return folder


def photo_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_name("out.zip"), "w") as archive:
        archive.writestr("wedding.jpg", b"dear")
    return folder


def with_a_note(folder: Path) -> Path:
    sample_bundle(folder)
    (folder / "model" / "notes.txt").write_text("mine")
    return folder


def with_an_empty_folder(folder: Path) -> Path:
    sample_bundle(folder)
    (folder / "mine").mkdir()
    return folder


def with_a_link(folder: Path) -> Path:
    sample_bundle(folder)
    (folder / "manifest.txt").symlink_to("/etc/hostname")
    return folder


def in_a_repacked_zip(folder: Path) -> Path:
    sample_bundle(folder)
    with zipfile.ZipFile(folder.with_name("out.zip"), "a") as archive:
        archive.writestr("diary.txt", b"dear")
    return folder


def behind_a_link(folder: Path) -> Path:
    sample_bundle(folder.with_name("real"))
    folder.symlink_to("real")
    return folder


def a_dead_link(folder: Path) -> Path:
    folder.symlink_to("nowhere")
    return folder


def a_file(folder: Path) -> Path:
    folder.write_text("dear")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (web_project, r"out is not a bundle and nothing else \(in the way: index\.html, manifest\.json\)"),
        (photo_archive, r"out\.zip is not the \.zip of a bundle and nothing else"),
        (with_a_note, r"in the way: model/notes\.txt\)"),
        (with_an_empty_folder, r"in the way: mine\)"),
        (with_a_link, r"in the way: manifest\.txt\)"),
        (in_a_repacked_zip, r"out\.zip is not the \.zip of a bundle and nothing else"),
        (behind_a_link, "out is a link, and edgevit replaces none"),
        (a_dead_link, "out is a link"),
        (a_file, "out is not a bundle"),
    ],
)
def test_force_replaces_nothing_that_is_not_ours(make: Any, said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=said):
        refuse_existing(folder, force=True)
    with pytest.raises(OutputError, match=said):
        bundle(folder, 1)
    assert contents(tmp_path) == before


def test_force_replaces_bundles_of_other_versions_damaged_ones_and_an_empty_folder(tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["golden_tolerance"], manifest["claims"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 7, "more": True}))
    (folder / "runner" / "run.py").unlink()
    bundle(folder, 1)
    assert versions_of_bundle(folder) == [1, 1]
    (tmp_path / "empty").mkdir()
    bundle(tmp_path / "empty", 2)
    assert versions_of_bundle(tmp_path / "empty") == [2, 2]


def test_of_two_writers_of_one_new_bundle_exactly_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install, folder = atomic.install, tmp_path / "out"

    def late(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(atomic, "install", install)
        sample_bundle(folder, depth=1)  # the other one, which began later, is done first
        install(*arguments, **options)

    monkeypatch.setattr(atomic, "install", late)
    with pytest.raises(OutputError, match="exists already"):
        sample_bundle(folder, depth=3)
    with open_bundle(folder) as opened:
        assert len(opened.manifest.branches) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.zip"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_appears_at_the_last_moment_is_not_overwritten(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zip cannot be put in its place: the folder that was there already goes back."""
    real, zipped = atomic._move, tmp_path / "out.zip"
    if not exchange:
        monkeypatch.setattr(renames, "_renameat2", lambda: None)

    def move(staging: Path, step: atomic.Step) -> None:
        if step.target == "out.zip":
            raise OSError(28, "No space left on device")
        real(staging, step)

    bundle(tmp_path / "out", 1)
    monkeypatch.setattr(atomic, "_move", move)
    with pytest.raises(OutputError, match="No space left"):
        bundle(tmp_path / "out", 2)
    assert versions_of_bundle(tmp_path / "out") == [1, 1]
    with pytest.raises(OutputError, match="No space left"):
        sample_bundle(tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == [] and zipped.is_file()
    (tmp_path / "file").write_text("dear")
    with pytest.raises(FileExistsError):
        atomic.write_file(tmp_path / "file", b"x", replace=False)
    assert (tmp_path / "file").read_text() == "dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new", "out", "out.zip"]


HALF = """
import os, sys
from collections.abc import Callable
from pathlib import Path
from edgevit.util import atomic
from tests.killing import bundle
real = atomic._move
def move(staging, step):
    if step.target == "out.zip":
        os.kill(os.getpid(), 9)
    real(staging, step)
bundle(Path(sys.argv[1]), 1)
atomic._move = move
bundle(Path(sys.argv[1]), 2)
"""


def half_replaced(folder: Path) -> Path:
    """A bundle of version 2 whose zip is still of version 1, as a killed process leaves it."""
    done = subprocess.run([sys.executable, "-c", HALF, str(folder)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert versions_of_bundle(folder) == [2, 1]
    return folder


def test_the_next_start_finishes_what_was_half_replaced(tmp_path: Path) -> None:
    folder = half_replaced(tmp_path / "out")
    refuse_existing(tmp_path / "another", force=False)  # whatever is built beside it
    assert versions_of_bundle(folder) == [2, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.zip"]


def test_the_next_start_leaves_what_was_changed_meanwhile(tmp_path: Path) -> None:
    folder = half_replaced(tmp_path / "out")
    zipped = tmp_path / "out.zip"
    inode = zipped.stat().st_ino
    zipped.write_text("my own now")  # even in the same inode
    assert zipped.stat().st_ino == inode
    atomic.sweep(tmp_path)
    assert zipped.read_text() == "my own now"
    zipped.unlink()
    half_replaced(folder)
    zipped.unlink()
    atomic.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # it was removed, and stays so


def test_only_strays_of_processes_that_are_gone_are_swept(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom edgevit.util import atomic\n"
        "held = atomic.scratch(Path(sys.argv[1]), 'x')\nfolder = held.__enter__()\n"
        "handle, file = atomic._new_file(Path(sys.argv[1]) / 'y')\n"
        "print(folder, file, flush=True)\nsys.stdin.read()\nos.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    mine = [tmp_path / name for name in (".out.old", "edgevit-notes", ".edgevit-1-abcdefgh", ".a.edgevit-x-abcdefgh")]
    for path in mine:
        path.write_text("dear")
    link = tmp_path / stray_name(process=1)
    link.symlink_to(tmp_path)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        strays = [Path(name) for name in process.stdout.readline().split()]
        assert all(is_stray(path.name) and f"-{process.pid}-" in path.name for path in strays)
        atomic.sweep(tmp_path)
        assert all(path.exists() for path in strays)
        process.stdin.close()
    atomic.sweep(tmp_path)
    assert not any(path.exists() for path in strays)
    assert all(path.read_text() == "dear" for path in mine) and link.is_symlink()


def test_what_is_called_like_a_stray_by_its_owner_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swept are the folders of outputs and of temporary files, where a name that begins as ours is soon made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("edgevit-2-notebook", "edgevit-2024-archived", ".x.edgevit-1-pictures", f"edgevit-1-{'0' * 16}")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("dear")
    (tmp_path / "edgevit-3-snapshot").write_text("dear")
    atomic.sweep(tmp_path)
    with atomic.scratch():
        pass
    assert all((tmp_path / name / "thesis.tex").read_text() == "dear" for name in names)
    assert (tmp_path / "edgevit-3-snapshot").read_text() == "dear"


def test_a_relative_place_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own temporary folders are absolute from 3.12 on, and then nothing would lie beside them."""
    monkeypatch.chdir(tmp_path)
    with atomic.scratch(Path(), "out") as staging:
        (staging / "new").write_text("x")
        atomic.install(staging, {"new": (Path("out"), "log")}, replace=False)
    assert not staging.is_absolute() and (tmp_path / "out").read_text() == "x"


def test_scratch_is_gone_after_an_error_and_sweeps_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / stray_name(process=1)).mkdir()
    with pytest.raises(KeyError), atomic.scratch() as folder:
        (folder / "file").write_text("x")
        assert [p.name for p in tmp_path.iterdir()] == [folder.name]
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    """A folder that looks like one of ours may come out of an archive."""
    inside = tmp_path / "downloads"
    inside.mkdir()
    stray = inside / stray_name("x", process=1)
    stray.mkdir()
    (tmp_path / "mine").write_text("step,dear\n")
    (stray / "new.old").write_text("")
    (stray / "new").write_text("evil")
    new, old = (stray / "new").stat().st_ino, (tmp_path / "mine").stat().st_ino
    step = {"source": "new", "target": "../mine", "kind": "log", "new": new, "old": old}
    (stray / "plan.json").write_text(json.dumps([step]))
    atomic.sweep(inside)
    assert (tmp_path / "mine").read_text() == "step,dear\n" and not stray.exists()


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / ("\u4e09" * 85), b"x")
    bundle(tmp_path / ("x" * 251), 1)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_written_can_be_read_by_others(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_fails_on_a_full_disk_is_told_as_that(tmp_path: Path) -> None:
    """Runtimes, compilers and NumPy say it in words of their own, or not at all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for error in (RuntimeError("iostream error"), ValueError("Unterminated string"), OSError("4096 requested")):
        with pytest.raises(type(error)), atomic.scratch(tmp_path):
            raise error
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with (
                pytest.raises(OutputError, match="cannot be written: File too large; make room"),
                atomic.scratch(tmp_path) as folder,
            ):
                (folder / "model").write_bytes(bytes(100))
                raise error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_whatever_is_made_for_a_moment_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Had the process been killed then; also what only tries whether a place can be written."""
    made: list[str] = []
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    for name, real in (("make_folder", strays.make_folder), ("make_file", strays.make_file)):

        def spy(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            found = real(*arguments)
            made.append((found[1] if isinstance(found, tuple) else found).name)
            return found

        monkeypatch.setattr(atomic, name, spy)
    ready([Output(path=tmp_path / "bundle")])
    usable_cache()
    atomic.write_file(tmp_path / "file", b"")
    assert len(made) == 3 and all(map(is_stray, made)), made


def test_scratch_is_gone_where_a_child_still_writes_into_it(tmp_path: Path) -> None:
    writes = "import pathlib, sys, time\nend = time.monotonic() + 0.1\nwhile time.monotonic() < end:\n"
    writes += "    pathlib.Path(sys.argv[1], str(time.monotonic_ns())).touch()"
    with atomic.scratch(tmp_path, "made") as folder:
        child = subprocess.Popen([sys.executable, "-c", writes, str(folder)], stderr=subprocess.DEVNULL)
        while not any(folder.iterdir()):
            pass
    assert not list(tmp_path.iterdir())
    child.wait()


@pytest.mark.parametrize("moment", ["_new_folder", "_remove"])
def test_a_signal_beside_a_scratch_folder_leaves_none(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the folder is just there, or before its removal can make it wait."""
    done = getattr(atomic, moment)
    came: list[int] = []

    def interrupted(*arguments: object) -> object:
        if moment == "_new_folder":
            made = done(*arguments)
            signal.raise_signal(signal.SIGINT)
            return made
        if not came:
            came.append(1)
            raise KeyboardInterrupt
        return done(*arguments)

    monkeypatch.setattr(atomic, moment, interrupted)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), atomic.scratch(tmp_path):
            pass
    finally:
        signal.signal(signal.SIGINT, old)
    assert not list(tmp_path.iterdir())
