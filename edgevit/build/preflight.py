"""What can be known before slow work begins, looked at in one place: runtime and tools, where results go, the disk.

Whoever runs for minutes calls `ready` first. It leaves nothing behind; what it tries, such as making a folder where the
output will be, is undone at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.backends import backend
from edgevit.backends.targets import accept
from edgevit.build.case import Place
from edgevit.errors import OutputError, ProgramError, TargetError
from edgevit.images.image_set import ImageSet
from edgevit.program.original import kept_answers, told
from edgevit.program.program import Program
from edgevit.schema.target import Target
from edgevit.util.atomic import refuse_inside, scratch
from edgevit.util.progress import Say

# Most memory that a build takes: so many times its float weights, and Python with its libraries
# (reports/reference/build-cost.md).
PEAK_PER_FLOAT, PEAK_BESIDE_BYTES = 6.5, 500_000_000
# What temporary names add to a name while it is written, and `.zip` beside a folder.
NAME_RESERVE_BYTES = 16
# What lies in a folder that edgevit writes has shorter paths than this.
INSIDE_RESERVE_BYTES = 160
NAME_BYTES, PATH_BYTES = 255, 4096  # where the system does not tell


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a result will be written.

    Attributes:
        path: a folder or a file; parents that are missing are made when it is written.
        option: how the user chose it, for the messages.
        folder: whether it becomes a folder.
        kept: what is there stays, and is added to; else it is replaced as a whole.
        needs_bytes: what it takes at the very least while it is written, before anything it replaces is gone.
    """

    path: Path
    option: str = "-o"
    folder: bool = True
    kept: bool = False
    needs_bytes: int = 0


def ready(
    outputs: Sequence[Output] = (), *, target: Target | None = None, tune_s: float = 0.0, temporary_bytes: int = 0
) -> None:
    """Refuse what cannot end well.

    Args:
        outputs: what will be written.
        target: what will be built for; None: nothing is compiled.
        tune_s: seconds of the search for the fastest tiles of compiled kernels.
        temporary_bytes: what the folder for temporary files has to hold at the very least.

    Raises:
        OutputError: an output cannot be written, two are in each other's way, or a disk is certainly too full.
        RuntimeMissingError: the target's runtime or a tool it compiles with is not installed.
        TargetError: nothing can be compiled for the target.
    """
    for output in outputs:
        _require_writable(output)
    _require_apart(outputs)
    _require_space(outputs, temporary_bytes)
    if target is not None:
        require_target(target, tune_s)


def require_target(target: Target, tune_s: float = 0.0) -> None:
    """Refuse a target that nothing can be built for here, which needs a look at it, the runtime and its tools only.

    Raises:
        RuntimeMissingError: the target's runtime or a tool it compiles with is not installed.
        TargetError: it asks for what its runtime cannot do, or nothing can be compiled for it.
    """
    accept(target)
    backend(target.backend).require(target, tune_s)


def check_limit(
    program: Program, target: Target, judged: ImageSet | None, max_drop: float | None, *, given: bool = False
) -> None:
    """Refuse a limit against the original that nothing here could judge; `given`: the original can be asked.

    Raises:
        ProgramError: the original is not known on the images to judge on.
        TargetError: the build cannot run here.
    """
    if max_drop is None:
        return
    place = Place(target=target)
    if not place.runnable:
        raise TargetError(f"--max-drop cannot be judged here: {place.unrunnable}; omit --max-drop")
    if judged is None:
        raise ProgramError(
            "--max-drop cannot be judged on the calibration images themselves, and they are too few to hold any out; "
            "give labelled images with --eval, or more to calibrate with"
        )
    if program.spec.compressed and not program.spec.head.decides:
        raise ProgramError(
            f"--max-drop counts classes that differ from the original's, and {program.spec.name} decides between none; "
            "omit --max-drop"
        )
    if not given and program.spec.compressed and kept_answers(program.spec, judged.images) is None:
        known = told(program.spec.original, program.spec.head.classes)
        raise ProgramError(
            f"--max-drop is against the original of {program.spec.name}, which is {known}; give it with --original "
            "(and --original-weights), or omit --max-drop"
        )


def warn_of_memory(program: Program, say: Say) -> None:
    """Say so before it begins where the build needs more memory than there is."""
    floats = sum(array.nbytes for array in program.weights.values())
    needed = PEAK_PER_FLOAT * floats + PEAK_BESIDE_BYTES
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        say(
            f"warning: {program.spec.name} has {floats} bytes of float weights, and its build takes about "
            f"{needed / 1e9:.1f} GB of memory; this machine has {present / 1e9:.1f} GB, so the system may end it. "
            "Prune the model first, or build where there is more"
        )


def _require_writable(output: Output) -> None:
    """Try the place itself: permissions alone say little of read-only disks, quotas and special file systems."""
    path, choose = output.path, f"choose another place with {output.option}"
    if path.name in ("", ".."):
        raise OutputError(f"{path} has no name of its own to write to; name a {_kind(output)} with {output.option}")
    refuse_inside(path)
    try:
        parent = _nearest_folder(path)
        _require_short(output, parent)
        if path.is_symlink() and not path.exists():
            raise OutputError(f"{path} is a link that leads nowhere; remove it, or {choose}")
        if path.exists() and path.is_dir() != output.folder:
            raise OutputError(f"{path} is {'a file' if output.folder else 'a folder'}; {choose}")
        if path.is_mount() and not output.kept:
            raise OutputError(f"{path} is where a disk is mounted and cannot be replaced; choose a folder in it")
        tried = path if output.kept and path.exists() else parent
        with scratch(tried, path.name):
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; {choose}") from error


def _nearest_folder(path: Path) -> Path:
    """Return the folder that holds `path`, or would hold the first of its parents that is missing."""
    nearest = Path("/")
    for parent in reversed(path.absolute().parents):
        try:
            there = parent.is_dir()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            there = False
        if not there and os.path.lexists(parent):
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder")
        if not there:
            break
        nearest = parent
    return nearest


def _require_short(output: Output, parent: Path) -> None:
    """Names and path as long as the file system takes, with what is added to them while writing."""
    whole = output.path.absolute()
    most = _limit(parent, "PC_NAME_MAX", NAME_BYTES) - NAME_RESERVE_BYTES
    for name in whole.relative_to(parent).parts:
        length = len(os.fsencode(name))
        if length > most:
            raise OutputError(
                f"the name {name[:40]}... has {length} bytes, at most {most} fit there; give a shorter one with "
                f"{output.option}"
            )
    length, most = len(os.fsencode(whole)), _limit(parent, "PC_PATH_MAX", PATH_BYTES) - INSIDE_RESERVE_BYTES
    if length > most:
        raise OutputError(
            f"the path of {whole.name[:40]} has {length} bytes, at most {most} fit; choose a shorter one with "
            f"{output.option}"
        )


def _limit(folder: Path, name: str, default: int) -> int:
    try:
        told = os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):
        return default
    return told if told > 0 else default


def _require_apart(outputs: Sequence[Output]) -> None:
    """No output is another one, or lies in it: the later would replace the earlier."""
    replaced = [output for output in outputs if not output.kept]
    for index, one in enumerate(replaced):
        for other in replaced[index + 1 :]:
            first, second = one.path.resolve(), other.path.resolve()
            if first == second or first in second.parents or second in first.parents:
                raise OutputError(
                    f"{one.path} ({one.option}) and {other.path} ({other.option}) are in each other's way; choose "
                    "folders that lie apart"
                )


def _require_space(outputs: Sequence[Output], temporary_bytes: int) -> None:
    """Refuse where what is needed at the very least is more than what is free; places on one disk count together."""
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputError("no folder for temporary files can be written; set TMPDIR to one that can") from error
    needs: dict[int, int] = defaultdict(int)
    places: dict[int, list[str]] = defaultdict(list)
    folders = [(_nearest_folder(each.path), each.needs_bytes, str(each.path)) for each in outputs]
    for folder, needed, named in [*folders, (temporary, temporary_bytes, f"temporary files in {temporary}")]:
        device = folder.stat().st_dev
        needs[device] += needed
        places[device] += [named] if needed else []
        free = shutil.disk_usage(folder).free
        if needs[device] > free:
            raise OutputError(
                f"the disk of {' and '.join(places[device])} has {free / 1e6:.1f} MB free, at least "
                f"{needs[device] / 1e6:.1f} MB are needed; make room, or choose another with -o and TMPDIR"
            )


def _kind(output: Output) -> str:
    return "folder" if output.folder else "file"
