"""Lines of a process on a board, as far as they come in time; a board that says nothing but noise is not heard out."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections import deque

LINE_LIMIT_BYTES = 64 << 20
NOISE_LIMIT_BYTES = 1 << 18
LAST_WORDS_BYTES = 300


class Lines:
    """What a process writes. `deadline` (of `time.monotonic`) may be moved; `garbage` is the last line of noise."""

    def __init__(self, process: subprocess.Popen[bytes], patience_s: float) -> None:
        self.process = process
        self.deadline = time.monotonic() + patience_s
        self.garbage = b""
        self._held = bytearray()
        self._lines: deque[bytearray] = deque()
        self._wasted_bytes = 0

    def waste(self, line: bytes) -> None:
        """Count a line that means nothing."""
        self.garbage, self._wasted_bytes = line or self.garbage, self._wasted_bytes + len(line)

    def next(self) -> bytes | None:
        """Return the next line; None at the end, when time is up, or when nothing but noise comes."""
        assert self.process.stdout
        pipe = self.process.stdout
        while not self._lines:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                return None
            part = os.read(pipe.fileno(), 1 << 16)
            if not part or len(self._held) > LINE_LIMIT_BYTES or self._wasted_bytes > NOISE_LIMIT_BYTES:
                self.garbage = bytes(self._held[-LAST_WORDS_BYTES:]) or self.garbage
                return None
            self._held += part
            if b"\n" in part:
                *whole, self._held = self._held.split(b"\n")
                self._lines.extend(whole)
        return bytes(self._lines.popleft())
