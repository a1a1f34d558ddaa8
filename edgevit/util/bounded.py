"""A file whose single reads are bounded: the libraries for archives read whatever a header says at once."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from edgevit.util.limits import ZIP_DIRECTORY_BYTES, Limit, LimitError


class Bounded(io.RawIOBase):
    """A file for `tarfile` and `zipfile`; a read of more than `limit`, or of all that follows, is refused.

    Args:
        inner: what is read; closed by who opened it.
        limit: of one read.
    """

    def __init__(self, inner: BinaryIO, limit: Limit) -> None:
        self._inner, self._limit = inner, limit

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does; raises LimitError."""
        most = self._limit.value
        if size is not None and size > most:
            raise LimitError(f"{self._limit.of} has {size} bytes, allowed: {self._limit}")
        content = self._inner.read(most + 1 if size is None or size < 0 else size)
        if len(content) > most:
            raise LimitError(f"{self._limit.of} has more than {most} bytes, allowed: {self._limit}")
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip to read; every entry of its directory takes ten times its bytes, so one beyond the limit is refused.

    Raises:
        LimitError: see above.
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    with path.open("rb") as raw, zipfile.ZipFile(cast(BinaryIO, Bounded(raw, ZIP_DIRECTORY_BYTES))) as archive:
        yield archive
