"""Read a compiled library without running any of it, for whichever architecture it is: its symbols and its bytecode."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgevit.backends.tvm.run.plugin import SYMBOL as OWN
from edgevit.backends.tvm.run.runtime import runtime
from edgevit.errors import BundleError

PREFIX = "__tvm_ffi_"
EMBEDDED = f"{PREFIX}_library_bin"
EXECUTABLE = b"relax.VMExecutable"
DYNAMIC_SYMBOLS = 11  # SHT_DYNSYM
SECTION, SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")  # of a 64-bit ELF file


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What a library holds.

    Attributes:
        text: its bytecode in words; empty where it needs no virtual machine to run it.
        symbols: the names that it defines or asks for.
        asked: those that it asks for.
    """

    text: str = field(repr=False)
    symbols: frozenset[str]
    asked: frozenset[str] = frozenset()

    def has_kernel(self, name: str) -> bool:
        return f"{PREFIX}{name}" in self.symbols


def read(path: Path) -> Shipped:
    """Read `model.so`.

    Raises:
        BundleError: missing, damaged, or no library of a model.
        RuntimeMissingError: TVM's runtime, which puts bytecode of older builds in words, is not installed.
    """
    try:
        raw = path.read_bytes()
        found = list(_symbols(raw))
        symbols = {name: content for name, content, _ in found}
        asked = frozenset(name for name, _, defined in found if name and not defined)
        if OWN in symbols and OWN not in asked:
            return Shipped(text="", symbols=frozenset(symbols), asked=asked)
        content = symbols[EMBEDDED]
        at = 8
        for _ in range(2):  # which module imports which: two lists of numbers
            at += 8 + 8 * _number(content, at)
        kind, at = _part(content, at)
        executable, _ = _part(content, at)
        if kind != EXECUTABLE:
            raise ValueError(f"its first module is {kind.decode(errors='replace')!r}")
        read_module = runtime().get_global_func(f"ffi.Module.load_from_bytes.{EXECUTABLE.decode()}")
        text = str(read_module(executable)["as_text"]())
    except (OSError, ValueError, KeyError, IndexError, struct.error, RuntimeError) as error:
        raise BundleError(f"{path} is no library of a model: {error}; unpack the bundle again") from error
    return Shipped(text=text, symbols=frozenset(symbols), asked=asked)


def _symbols(raw: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """Yield every dynamic symbol, the bytes it names, and whether it is defined.

    The bytes are in the file where they are at the same address.
    """
    if raw[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", raw, 40)
    size, count = struct.unpack_from("<HH", raw, 58)
    sections = [SECTION.unpack_from(raw, table + i * size) for i in range(count)]
    (_, _, _, _, begin, length, link, *_) = next(s for s in sections if s[1] == DYNAMIC_SYMBOLS)
    strings = sections[link][4]
    for offset in range(begin, begin + length, SYMBOL.size):
        name, _, _, index, address, extent = SYMBOL.unpack_from(raw, offset)
        start = strings + name
        home = sections[index] if 0 < index < count else None
        at = address - home[3] + home[4] if home else 0
        yield raw[start : raw.index(b"\0", start)].decode(), raw[at : at + extent], home is not None


def _number(content: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<Q", content, at)
    if value > len(content):
        raise ValueError("a length is beyond its end")
    return int(value)


def _part(content: bytes, at: int) -> tuple[bytes, int]:
    end = at + 8 + _number(content, at)
    return content[at + 8 : end], end
