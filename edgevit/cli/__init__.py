"""The command `edgevit`: finds a command's file on demand, and turns errors into one message and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from edgevit import __version__
from edgevit.cli import messages, terminal
from edgevit.cli.exit_codes import exit_codes
from edgevit.errors import NO_MEMORY, EdgevitError, OutOfMemoryError, OutputError

COMMANDS = ("compress", "build", "profile", "report", "verify", "sign", "device", "targets", "models", "doctor")
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT and 128 + SIGTERM, as shells report them
# What a disk answers to anybody who writes: no bug of ours, wherever it comes up.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
AGAIN_S = 0.02
LITTLE_BYTES = 64 << 20
NO_TEMPORARY_FOLDER = "No usable temporary directory"  # as Python's tempfile says it

EXAMPLE = """\b
Example:
  edgevit build deit_tiny_patch16_224 --weights deit.safetensors --target x86-64-onnxruntime -o out/deit
  edgevit profile out/deit --images photos/
  edgevit report out/deit
"""


class LazyGroup(click.Group):
    """Commands are files beside this one, each exposing `command`; a file is imported only when its turn comes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        folder = Path(__file__).parent
        return [name for name in COMMANDS if (folder / f"{name}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"edgevit.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(known)}."
            raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


def _epilog() -> str:
    rows = "\n".join(f"  {row.code:>3}  {row.meaning}" for row in exit_codes())
    return f"{EXAMPLE}\n\b\nExit codes:\n{rows}"


@click.group(cls=LazyGroup, epilog=_epilog(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgevit")
def cli() -> None:
    """Compile Vision Transformers into small, input-adaptive, quantized bundles for edge devices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; every error raised on purpose is one message on stderr."""
    with terminal.guarded():
        try:
            with _cleaning_up(), messages.shown():
                result = cli.main(args=arguments, prog_name="edgevit", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.Abort:
            click.echo("edgevit: interrupted; nothing half-written was left.", err=True)
            return INTERRUPTED
        except click.ClickException as error:
            _refuse(error.format_message())
            if isinstance(error, click.UsageError) and error.ctx is not None:
                click.echo(f"See: {error.ctx.command_path} --help", err=True)
            return error.exit_code
        except Exception as error:
            told = _told(error)
            if told is None:
                raise
            _refuse(str(told))
            return told.exit_code
        return result if isinstance(result, int) else 0


def _refuse(message: str) -> None:
    """Print an error, in the one form that all have."""
    click.echo(f"edgevit: error: {message}", err=True)


def _told(error: Exception) -> EdgevitError | None:
    """Return the error to tell: one raised on purpose, or what the machine lacked; None for a bug."""
    if _memory(error) or not (isinstance(error, EdgevitError | OSError) or _some_memory()):
        return OutOfMemoryError(
            "there is not enough memory; close other programs, raise the limit of this process (ulimit -v) or of its "
            "container, or take a smaller model, fewer images (--limit) or a smaller batch"
        )
    if isinstance(error, EdgevitError):
        return error
    refused = _disk(error) if isinstance(error, OSError) else None
    return None if refused is None else OutputError(refused)


def _some_memory() -> bool:
    """Return whether this process can still get a little: without, libraries fail in ways that look like bugs."""
    try:
        mmap.mmap(-1, LITTLE_BYTES).close()
    except (OSError, MemoryError):
        return False
    return True


def _memory(error: BaseException | None) -> bool:
    """Return whether memory ran out: here, in a runtime, or in a process that was started and left these words."""
    seen = 0
    while error is not None and seen < 20:
        lacks = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if lacks or isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _disk(error: OSError) -> str | None:
    """Return what to tell where a disk refused and no stage has said so already; None for any other fault."""
    if NO_TEMPORARY_FOLDER in str(error):
        return "no folder for temporary files can be written; set TMPDIR to one that can"
    if error.errno not in DISK:
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror}; make room there, or choose another place with -o and TMPDIR"


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let a request to end (SIGTERM) unwind like Ctrl-C: what runs elsewhere is stopped, temporary folders go."""

    def leave(*_: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    told = sys.unraisablehook
    signal.signal(signal.SIGTERM, leave)
    sys.unraisablehook = lambda lost: _ask_again(lost) or told(lost)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = told


def _ask_again(lost: sys.UnraisableHookArgs) -> bool:
    """Send a request to end once more that came where Python lets no exception through, such as while it forks."""
    number = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(lost.exc_type)
    if number is None:
        return False
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    return True
