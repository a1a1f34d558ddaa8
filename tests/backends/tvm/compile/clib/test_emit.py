import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.backends.tvm.compile.clib.emit import writing_object
from edgevit.errors import OutputError


class Module:
    """What LLVM's module does, by a function of the path."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write_to_file = write


def write(how: Callable[[str], object], path: Path) -> None:
    with writing_object(Module(how), path):
        pass


def test_what_is_written_is_there(tmp_path: Path) -> None:
    write(lambda path: Path(path).write_bytes(b"code"), tmp_path / "kernels.o")
    assert (tmp_path / "kernels.o").read_bytes() == b"code"


def test_an_end_of_the_process_is_one_error(tmp_path: Path) -> None:
    def end(path: str) -> None:
        os.write(2, b"LLVM ERROR: IO failure on output stream: No space left on device\n")
        os._exit(1)

    with pytest.raises(OutputError, match="cannot write .*kernels.o: LLVM ERROR: IO failure .*: No space left"):
        write(end, tmp_path / "kernels.o")


def test_a_silent_end_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="LLVM ended with code -9"):
        write(lambda path: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "kernels.o")


def test_an_exception_does_not_return_into_the_parents_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*No such file or directory"):
        write(lambda path: Path(path).write_bytes(b""), tmp_path / "none" / "kernels.o")


def test_no_child_is_left_where_the_parent_is_stopped(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def slowly(path: str) -> None:
        begun.write_text(str(os.getpid()))
        time.sleep(60)

    def stop() -> None:
        while not begun.exists() or not begun.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        write(slowly, tmp_path / "kernels.o")
    stopper.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_no_child_is_left_where_the_other_work_fails(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def slowly(path: str) -> None:
        begun.write_text(str(os.getpid()))
        time.sleep(60)

    with pytest.raises(ZeroDivisionError), writing_object(Module(slowly), tmp_path / "kernels.o"):
        while not begun.exists() or not begun.read_text():
            time.sleep(0.01)
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
