"""What a compiled model's main function does, read off its bytecode: calls of kernels, and branches that gates decide.

The machine's registers hold nothing but the caller's buffers and the answers of gates, so every one of them is known
here to be one of the function's parameters, and nothing is left for a virtual machine to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgevit.errors import BoundError

FUNCTION, PACKED = re.compile(r"^@(\S+):$"), re.compile(r"^@\S+ packed_func;$")
CALL = re.compile(r"^call\s+(\S+)\s+in: (.*?)\s*dst: %(\w+)$")
JUMP, IF, RETURN = re.compile(r"^goto\s+(\d+)$"), re.compile(r"^If\s+%(\d+), (\d+)$"), re.compile(r"^ret\s+%(\d+)$")
REGISTER = re.compile(r"^%(\d+)$")
# Shapes and types of arguments, which kernels check themselves.
CHECKS = frozenset({"vm.builtin.check_tensor_info", "vm.builtin.match_shape"})
# They give on what they are given.
PASSED_ON = frozenset({"vm.builtin.copy", "vm.builtin.read_if_cond"})
VOID = "void"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a kernel or of another function; `given` are indices of the parameters of the function around it."""

    callee: str
    given: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Gated:
    """`gate` is a kernel whose answer decides which of the two sides runs."""

    gate: Call
    opened: tuple[Step, ...]
    closed: tuple[Step, ...]


Step = Call | Gated


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of `parameters` buffers: its steps, and which of them it returns."""

    name: str
    parameters: int
    steps: tuple[Step, ...]
    returned: int


def functions(text: str) -> dict[str, Function]:
    """Return the functions of a module in textual bytecode, every one behind those that it calls.

    Raises:
        BoundError: an instruction is none of those that a build of edgevit has; names it.
    """
    lines = _split(text)
    found: dict[str, Function] = {}
    if "main" not in lines:
        raise BoundError("the module has no function main; compile it again")

    def read(name: str) -> None:
        if name in found:
            return
        for line in lines[name]:
            call = CALL.match(line)
            if call and call[1] in lines and call[1] != name:
                read(call[1])
        found[name] = _Reader(name, lines[name], found).read()

    read("main")
    return found


def kernels(read: Iterable[Function]) -> tuple[str, ...]:
    """Return the names of all kernels that functions call, each once, in order of first use."""
    every = list(read)
    own = {function.name for function in every}
    named = (call.callee for function in every for call in _calls(function.steps))
    return tuple(dict.fromkeys(name for name in named if name not in own))


def _calls(steps: Sequence[Step]) -> Iterable[Call]:
    for step in steps:
        if isinstance(step, Call):
            yield step
        else:
            yield step.gate
            yield from _calls(step.opened)
            yield from _calls(step.closed)


def _split(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    inside: list[str] | None = None
    for line in text.splitlines():
        if name := FUNCTION.match(line):
            inside = found.setdefault(name[1], [])
        elif PACKED.match(line):
            inside = None
        elif line.strip() and inside is not None:
            inside.append(line.strip())
    return found


class _Reader:
    """Reads one function; `holds` is which parameter every register is, `answers` what gates gave."""

    def __init__(self, name: str, lines: Sequence[str], known: Mapping[str, Function]) -> None:
        self.name, self.lines, self.known = name, lines, known
        self.holds: dict[int, int] = {}
        self.answers: dict[int, Call] = {}
        self.parameters = 0

    def read(self) -> Function:
        last = RETURN.match(self.lines[-1]) if self.lines else None
        if last is None:
            raise self._refusal("it does not end by returning")
        steps = self._steps(0, len(self.lines) - 1)
        returned = self._parameter(int(last[1]))
        return Function(name=self.name, parameters=self.parameters, steps=steps, returned=returned)

    def _steps(self, at: int, end: int) -> tuple[Step, ...]:
        steps: list[Step] = []
        while at < end:
            line = self.lines[at]
            if call := CALL.match(line):
                steps += self._call(call[1], call[2], call[3])
                at += 1
            elif branch := IF.match(line):
                gate = self.answers.get(int(branch[1]))
                if gate is None or not steps or steps.pop() is not gate:
                    raise self._refusal(f"{line!r} is decided by no gate before it")
                closed = at + int(branch[2])
                jump = JUMP.match(self.lines[closed - 1]) if at + 1 < closed <= end else None
                if jump is None or not closed <= closed - 1 + int(jump[1]) <= end:
                    raise self._refusal(f"{line!r} has no two sides")
                after = closed - 1 + int(jump[1])
                steps.append(
                    Gated(gate=gate, opened=self._steps(at + 1, closed - 1), closed=self._steps(closed, after))
                )
                at = after
            else:
                raise self._refusal(f"there is no C for {line!r}")
        return tuple(steps)

    def _call(self, callee: str, words: str, result: str) -> list[Step]:
        if callee in CHECKS:
            return []
        registers = [found and int(found[1]) for found in map(REGISTER.match, filter(None, words.split(", ")))]
        if None in registers:
            raise self._refusal(f"{callee} takes more than buffers: {words}")
        sources = [register for register in registers if register is not None]
        if callee in PASSED_ON:
            (source,) = sources
            if source in self.answers:
                self.answers[int(result)] = self.answers[source]
            else:
                self._hold(int(result), self._parameter(source))
            return []
        if callee.startswith("vm."):
            raise self._refusal(f"there is no C for {callee}")
        call = Call(callee=callee, given=tuple(self._parameter(source) for source in sources))
        if callee in self.known:
            if result != VOID:
                self._hold(int(result), call.given[self.known[callee].returned])
        elif result != VOID:
            self.answers[int(result)] = call
        return [call]

    def _hold(self, register: int, parameter: int) -> None:
        """Both sides of a branch must leave the same buffer."""
        if self.holds.setdefault(register, parameter) != parameter:
            raise self._refusal(f"register {register} is one buffer or another")

    def _parameter(self, register: int) -> int:
        if register in self.answers:
            raise self._refusal(f"a gate's answer is used as a buffer, in register {register}")
        if register not in self.holds:  # nothing was put there before: the caller did
            self.holds[register] = register
            self.parameters = max(self.parameters, register + 1)
        return self.holds[register]

    def _refusal(self, what: str) -> BoundError:
        return BoundError(f"{self.name} cannot be translated to C: {what}")
