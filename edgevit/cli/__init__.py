"""The command `edgevit`: finds a command's file on demand, and turns errors into one message and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import json
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgevit import __version__
from edgevit.cli import messages, terminal
from edgevit.cli.exit_codes import exit_codes
from edgevit.errors import NO_MEMORY, EdgevitError, OutOfMemoryError, OutputError

COMMANDS = (
    *("compress", "build", "profile", "report", "compare", "verify", "sign"),
    *("device", "targets", "models", "doctor"),
)
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT and 128 + SIGTERM, as shells report them
# What a disk answers to anybody who writes: no bug of ours, wherever it comes up.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
AGAIN_S = 0.02
COMPLETING = "_EDGEVIT_COMPLETE"
LITTLE_BYTES = 64 << 20
NO_TEMPORARY_FOLDER = "No usable temporary directory"  # as Python's tempfile says it

EXAMPLE = """\b
Example:
  edgevit build deit_tiny_patch16_224 --weights deit.safetensors --target x86-64-onnxruntime -o out/deit
  edgevit profile out/deit --images photos/
  edgevit report out/deit
"""
COMPLETION = """\b
Completion of commands, options and targets, in ~/.bashrc, ~/.zshrc or config.fish:
  eval "$(_EDGEVIT_COMPLETE=bash_source edgevit)"
  eval "$(_EDGEVIT_COMPLETE=zsh_source edgevit)"
  _EDGEVIT_COMPLETE=fish_source edgevit | source
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
        return messages.take_options(command)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click itself writes an empty line when it is interrupted."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError):
            raise click.Abort from None

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
    return f"{EXAMPLE}\n{COMPLETION}\n\b\nExit codes:\n{rows}"


@click.group(cls=LazyGroup, epilog=_epilog(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="edgevit")
def cli() -> None:
    """Compile Vision Transformers into small, input-adaptive, quantized bundles for edge devices."""


messages.take_options(cli)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Every error raised on purpose is one message on stderr; where `--json` was asked for, stdout gets it as an object.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if COMPLETING in os.environ:  # a shell asks what may follow; click answers in bytes and ends
        cli.main(args=given, prog_name="edgevit")
    with terminal.guarded(), messages.shown(messages.Messages(given)) as shown:
        try:
            with _cleaning_up():
                result = cli.main(args=given, prog_name="edgevit", standalone_mode=False, obj=shown)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            return 0
        except Exception as error:
            return _fail(error, given, shown)
        return result if isinstance(result, int) else 0


def _fail(error: Exception, arguments: Sequence[str], shown: messages.Messages) -> int:
    """Tell an error, in the one form that all have, and return its exit code; a bug is raised again."""
    code, kind, line, see = 1, type(error).__name__, f"error: a bug in edgevit: {error!r}", ""
    told = None if isinstance(error, click.Abort | click.ClickException) else _told(error)
    if isinstance(error, click.Abort):
        code, kind, line = INTERRUPTED, "Interrupted", "interrupted; no partial output was left."
    elif isinstance(error, click.ClickException):
        code, line = error.exit_code, f"error: {error.format_message()}"
        if isinstance(error, click.UsageError) and error.ctx is not None:
            see = f"\nSee: {error.ctx.command_path} --help"
    elif told is not None:
        code, kind, line = told.exit_code, type(told).__name__, f"error: {told}"
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options and sys.stdout is not None and not (told and told.answered):
        answer = {"error": {"code": code, "kind": kind, "message": line.removeprefix("error: ")}}
        with contextlib.suppress(OutputError):
            click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    shown.failed(line, error)
    if code == 1:
        raise error
    below = "\n" if code == INTERRUPTED and sys.stderr and sys.stderr.isatty() else ""  # of the ^C that it shows
    click.echo(f"{below}edgevit: {line}{see}", err=True)
    return code


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
    """Let a request to end (SIGTERM) unwind like Ctrl-C: what runs elsewhere is stopped, temporary folders go.

    Native code that calls Python, such as a compiler's, makes an error of its own of what a handler raises: whatever
    error comes after a request is told as that.
    """
    asked: list[int] = []

    def leave(number: int, _: object) -> None:
        asked.append(number)
        raise SystemExit(TERMINATED) if number == signal.SIGTERM else KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    told, interrupted = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, leave)
    if interrupted == signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    sys.unraisablehook = lambda lost: _ask_again(lost) or told(lost)
    try:
        yield
    except Exception:
        if not asked:
            raise
        raise SystemExit(TERMINATED) if signal.SIGTERM in asked else click.Abort from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, interrupted)
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
