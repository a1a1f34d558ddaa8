"""Write a compiled model's library in C: a header, the calls of its kernels, and what is loaded by its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import __version__
from edgevit.backends.tvm.compile.clib.calls import Call, Function, Step, functions, kernels
from edgevit.backends.tvm.compile.clib.cpu import cpu_check
from edgevit.backends.tvm.compile.emit import Lowered
from edgevit.errors import BoundError

TEMPLATES = Path(__file__).parent / "c"
ALIGN_BYTES = 64
HEAD_BYTES = 4096  # of the weights that are looked at: a page that every run reads
STACK = "64 KiB"
CODES = {"int": 0, "uint": 1, "float": 2}
# What a caller hands over or is handed, beside weights; all other buffers are the library's own.
OUTER, OUTPUTS = "image", ("logits", "gates")
TENSOR_BYTES, STATE_BYTES, THREAD_BYTES = 48, 64, 64
NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A parameter of `main`; `offset` is in the memory, or in the weights, or None for the image."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int | None

    @property
    def weights(self) -> bool:
        return self.name.startswith("w_")

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.kind).itemsize


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library to be written.

    Attributes:
        name: what its functions' names begin with, and its files'.
        title: a line that says what it is.
        lowered: what was compiled.
        text: bytecode of it.
    """

    name: str
    title: str
    lowered: Lowered
    text: str

    @cached_property
    def functions(self) -> dict[str, Function]:
        return functions(self.text)

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        return kernels(self.functions.values())

    @cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """Return the parameters of `main`, each with its place."""
        inside, weights, found = self.state_bytes, 0, []
        for parameter in self.lowered.module["main"].params:
            shape, kind = tuple(int(extent) for extent in parameter.ty.shape.values), str(parameter.ty.dtype)
            kind = kind.removeprefix("T.")
            buffer = Buffer(name=str(parameter), shape=shape, kind=kind, offset=None)
            if buffer.weights:
                offset, weights = weights, weights + buffer.bytes
            elif buffer.name == OUTER:
                offset = None
            else:
                offset, inside = inside, inside + _aligned(buffer.bytes)
            found.append(Buffer(name=buffer.name, shape=shape, kind=kind, offset=offset))
        return tuple(found)

    @property
    def state_bytes(self) -> int:
        threads = self.lowered.isa.threads
        pool = 0 if threads == 1 else 256 + THREAD_BYTES * threads
        return _aligned(STATE_BYTES + pool + TENSOR_BYTES * len(self.lowered.module["main"].params))

    @property
    def memory_bytes(self) -> int:
        """Return what a caller gives: the library's state, activations and outputs."""
        inner = [b for b in self.buffers if not b.weights and b.offset is not None]
        return max((b.offset or 0) + _aligned(b.bytes) for b in inner)

    @property
    def weights_bytes(self) -> int:
        return sum(buffer.bytes for buffer in self.buffers if buffer.weights)

    @cached_property
    def version(self) -> str:
        """Return edgevit's version and what tells this model from every other."""
        digest = hashlib.sha256(self.text.encode())
        digest.update(repr((self.lowered.isa, self.buffers)).encode())
        for _, values in self.lowered.weights:
            digest.update(values.tobytes())
        return f"{__version__}-{digest.hexdigest()[:16]}"

    def buffer(self, name: str) -> Buffer | None:
        return next((buffer for buffer in self.buffers if buffer.name == name), None)

    def files(self) -> dict[str, str]:
        """Return the texts, by file name: header, source, what is loaded by its file, and weights as an object.

        Raises:
            BoundError: the bytecode has something that there is no C for.
        """
        return {
            f"{self.name}.h": self._named("model.h", self._header()),
            f"{self.name}.c": self._named("model.c", self._source()),
            "plugin.c": self._named("plugin.c", self._plugin()),
            "plugin.h": (TEMPLATES / "plugin.h").read_text(encoding="utf-8"),
            f"{self.name}_weights.S": self._named("weights.S", {"NAME": self.name}),
            "example.c": self._named("example.c", {"NAME": self.name}),
            "deadline.h": (TEMPLATES / "deadline.h").read_text(encoding="utf-8"),
        }

    @property
    def exported(self) -> tuple[str, ...]:
        """Return the functions that a program may call."""
        found = ["version", "message", "size", "init", "run", "listen"]
        found += ["tokens"] if self.buffer("tokens") else []
        found += ["start"] if self.lowered.isa.threads > 1 else []
        return tuple(f"{self.name}_{part}" for part in found)

    def _named(self, template: str, values: dict[str, Any]) -> str:
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        text = re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1]]), text)
        text = text.replace("MODEL.h", f"{self.name}.h")
        for case in (str.upper, str.lower):
            text = re.sub(rf"\b{case('model')}(?=_)", case(self.name), text)
        return text

    def _header(self) -> dict[str, Any]:
        spec, isa, tokens = self.lowered.spec, self.lowered.isa, self.buffer("tokens")
        threads = isa.threads > 1
        points = f"#define MODEL_POINTS {tokens.shape[0]} /* where tokens are merged */\n" if tokens else ""
        return {
            "NAME": self.name,
            "TITLE": self.title,
            "MACHINE": f"{isa.target['mtriple'].split('-')[0]} with {' '.join(isa.flags)}",
            "UNLESS": ", unless model_start is called" if threads else "",
            "STACK": STACK,
            "VERSION": self.version,
            "HEIGHT": spec.image.height,
            "WIDTH": spec.image.width,
            "IMAGE_BYTES": 3 * spec.image.height * spec.image.width,
            "CLASSES": spec.head.classes,
            "BRANCHES": len(spec.branches),
            "POINTS": points + (f"#define MODEL_MOST_THREADS {isa.threads}\n" if threads else ""),
            "MEMORY_BYTES": self.memory_bytes,
            "WEIGHTS_BYTES": self.weights_bytes,
            "TOKENS": TOKENS if tokens else "",
            "THREADS": START if threads else "",
        }

    def _source(self) -> dict[str, Any]:
        threads, isa = self.lowered.isa.threads, self.lowered.isa
        weights = b"".join(values.tobytes() for _, values in self.lowered.weights)[:HEAD_BYTES]
        own = [function for function in self.functions.values() if function.name != "main"]
        tokens = self.buffer("tokens")
        pooled = [(TEMPLATES / "pool.c").read_text(encoding="utf-8")] if threads > 1 else []
        return {
            "TITLE": self.title,
            "TABLES": self._tables(),
            "HEAD": len(weights),
            "SUM": f"0x{_fnv(weights):016x}",
            "POOL_STATE": "  pool group;\n" if threads > 1 else "",
            "FUNCTIONS": "\n".join([*pooled, *map(self._function, own), self._function(self.functions["main"])]),
            "CPU": cpu_check(isa.target["mtriple"].split("-")[0], isa.flags),
            "BEFORE": "  running = model;\n" if threads > 1 else "",
            "START": "  made->group.threads = 1;\n" if threads > 1 else "",
            "MORE": f"\n{TOKENS_OF}" if tokens else "",
        }

    def _plugin(self) -> dict[str, Any]:
        tokens, threads = self.buffer("tokens"), self.lowered.isa.threads
        more = "\nstatic const int32_t *tokens(const void *model) { return model_tokens(model); }\n" if tokens else ""
        more += "\nstatic int start(void *model, int threads) { return model_start(model, threads); }\n" * (threads > 1)
        return {
            "POOLED": threads,
            "ARENA": 4 * self.lowered.arena,
            "POINTS": "MODEL_POINTS" if tokens else "0",
            "MORE": more,
            "TOKENS": "tokens" if tokens else "NULL",
            "START": "start" if threads > 1 else "NULL",
        }

    def _tables(self) -> str:
        buffers, threads = self.buffers, self.lowered.isa.threads
        first = next(index for index, buffer in enumerate(buffers) if buffer.weights)
        shapes: list[int] = []
        rows, names = [], []
        for index, buffer in enumerate(buffers):
            place = "WEIGHTS" if buffer.weights else "OUTSIDE" if buffer.offset is None else "INSIDE"
            code, bits = re.fullmatch(r"([a-z]+)(\d+)", buffer.kind).groups()  # type: ignore[union-attr]
            at = f"shapes + {len(shapes)}"
            rows.append(f"    {{{place}, {buffer.offset or 0}, {CODES[code]}, {bits}, {len(buffer.shape)}, {at}}},")
            rows[-1] += f" /* {buffer.name} */"
            shapes += buffer.shape
            if not buffer.weights:
                names.append(f"{buffer.name.upper()} = {index}")
        most = max(len(call.given) for f in self.functions.values() if f.name != "main" for call in _flat(f.steps))
        most = max(most, *(len(call.given) for call in _flat(self.functions["main"].steps)))
        lines = [
            f"enum {{ BUFFERS = {len(buffers)}, WEIGHTS_BEGIN = {first}, MOST_ARGUMENTS = {most}, "
            f"STATE_BYTES = {self.state_bytes} }};",
            f"enum {{ {', '.join(names)} }};",
            "",
            f"static const int64_t shapes[] = {{{', '.join(map(str, shapes))}}};",
            "",
            "static const described buffers[BUFFERS] = {",
            *rows,
            "};",
            "",
            "kernel " + ",\n    ".join(f"__tvm_ffi_{name}" for name in self.kernels) + ";",
        ]
        return "\n".join([*lines, *([POOL.replace("@MOST@", str(threads - 1))] if threads > 1 else [])]) + "\n"

    def _function(self, function: Function) -> str:
        main = function.name == "main"
        names = [f"b{index}" for index in range(function.parameters)]
        given = "" if main else "".join(f", const tensor *{name}" for name in names)
        head = f"static int {_c_name(function.name)}(model_state *model{given}) {{"
        lines = [head]
        if main:
            lines.append("  const tensor *const b = model->buffers;")
        if any(not isinstance(step, Call) for step in function.steps):
            lines.append("  int open = 0;")
        if not main:
            lines.append(f'  BEGIN("{function.name}", {", ".join(names)});')
        lines += self._steps(function.steps, main=main, indent="  ")
        if not main:
            lines.append(f'  END("{function.name}", {", ".join(names)});')
        return "\n".join([*lines, "  return 0;", "}", ""])

    def _steps(self, steps: Sequence[Step], *, main: bool, indent: str) -> list[str]:
        lines = []
        for step in steps:
            if isinstance(step, Call):
                lines.append(f"{indent}if ({self._call(step, main=main)}) return 1;")
                continue
            lines.append(f"{indent}if ({self._call(step.gate, main=main, gate=True)}) return 1;")
            opened, closed = (self._steps(side, main=main, indent=f"{indent}  ") for side in (step.opened, step.closed))
            lines += [f"{indent}if (open) {{", *opened, *([f"{indent}}} else {{", *closed] if closed else [])]
            lines.append(f"{indent}}}")
        return lines

    def _call(self, call: Call, *, main: bool, gate: bool = False) -> str:
        given = ", ".join(f"b + {index}" if main else f"b{index}" for index in call.given)
        if call.callee in self.functions:
            return f"{_c_name(call.callee)}(model, {given})"
        return f"{'GATE' if gate else 'CALL'}({call.callee}, {given})"


TOKENS = """
/* Return how many patch tokens were left after each of the MODEL_POINTS points in the last run. */
const int32_t *model_tokens(const model_state *model);
"""
TOKENS_OF = "const int32_t *model_tokens(const model_state *model) { return model->buffers[TOKENS].data; }\n"
START = """
/* Let runs share out their kernels among this thread and `threads` - 1 others, which live until this is called again
 * with 1: to be done before the memory is given up. Outputs are the same for any number, to the last bit.
 */
int model_start(model_state *model, int threads);
"""
POOL = """
#include <pthread.h>
#include <sched.h>

enum { SPINS = 30000, BETWEEN = 64 };

struct pool;
struct team;
typedef struct {
  pthread_t thread;
  struct pool *group;
  int index, turn;
} helper;

typedef struct pool {
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  int (*work)(int, struct team *, void *);
  void *data;
  int threads, turn, busy, fault, arrived, passed, asleep;
  helper helpers[@MOST@];
} pool;"""


def checked_name(name: str) -> str:
    """Return a name if a C library can have it.

    Raises:
        BoundError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise BoundError(f"a C library cannot be named {name!r}; allowed: small letters, digits and _, a letter first")
    return name


def _flat(steps: Sequence[Step]) -> list[Call]:
    found: list[Call] = []
    for step in steps:
        found += [step] if isinstance(step, Call) else [step.gate, *_flat(step.opened), *_flat(step.closed)]
    return found


def _c_name(name: str) -> str:
    return "run" if name == "main" else name


def _aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def _fnv(content: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
