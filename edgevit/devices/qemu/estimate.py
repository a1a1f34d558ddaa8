"""Cycles that executed blocks take on a core, by llvm-mca: a bound of a model, never a measurement.

The counter of `count.c` tells which blocks of code ran and how often. llvm-mca (LLVM 19 or newer, whose models know the
cores of today) tells for how many cycles a block keeps the core's units busy at least, all its loads in the first
cache: times its runs, the lower bound. It also tells how long a block takes that is repeated by itself, results waited
for. Out of order, neighbouring blocks overlap, so that belongs to the upper bound only; to it come the cache misses
that the counter's cache model saw, each waited for alone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices.qemu.emulator import last_words
from edgevit.errors import DeviceError
from edgevit.schema.arm_cpus import Core

# tests/benchmarks/test_arm.py holds it against what benchmarks/estimate_error.py wrote.
CHECKED = "native runs took 1.10 to 1.31"
OLDEST_LLVM, NEWEST_LLVM = 19, 30
INSTALL = "sudo apt-get install llvm-19"
COVERED = 0.99  # of the instructions, by the blocks that executed the most
MOST_BLOCKS = 4000
LONG = 48  # instructions; longer blocks are repeated less
REPEATS, REPEATS_LONG = 100, 12
MCA_S = 300
# A code that no compiler emits, between two blocks: BRK #0xedb; UD1 (%rax), %eax after NOPs that an instruction takes
# in whose end the counter did not see, on the next page.
_MARKS = {
    "aarch64": (bytes.fromhex("60db21d4"), "brk\t#0xedb"),
    "x86_64": (b"\x90" * 15 + bytes.fromhex("0fb900"), "ud1l"),
}
# llvm-mca takes a call for 100 cycles. What is called is a block of its own, so a jump stands for it. A repeated string
# instruction of x86 is a block per byte to qemu, and many bytes per cycle to the processor: it counts for nothing.
_REWRITES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "aarch64": ((r"^blr\t", "br\t"), (r"^bl\t", "b\t"), (r"^ret$", "br\tx30"), (r"^(svc|hlt|brk|udf)\b.*", "")),
    "x86_64": ((r"^callq?\t[^*].*", "jmp\t0"), (r"^(rep|callq?|retq?|syscall|cpuid|xgetbv|hlt)\b.*", "")),
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A translated block: its machine code, how many instructions that is, and how often it ran."""

    code: bytes
    instructions: int
    runs: float


@dataclass(frozen=True, kw_only=True)
class Mca:
    """The programs of one LLVM."""

    mca: str
    mc: str
    version: str


def find_mca() -> Mca | None:
    """Return the newest llvm-mca of LLVM 19 or newer on PATH, with its llvm-mc; None if there is none."""
    for suffix in (*(f"-{number}" for number in range(NEWEST_LLVM, OLDEST_LLVM - 1, -1)), ""):
        mca, mc = shutil.which(f"llvm-mca{suffix}"), shutil.which(f"llvm-mc{suffix}")
        if not mca or not mc:
            continue
        told = subprocess.run([mca, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"LLVM version (\d+)(\.\d+)*", told)
        if found and int(found[1]) >= OLDEST_LLVM:
            return Mca(mca=mca, mc=mc, version=f"llvm-mca {found[0].removeprefix('LLVM version ')}")
    return None


def missing() -> str:
    """Return why there is no estimate, and what to do."""
    return f"there is no llvm-mca of LLVM {OLDEST_LLVM} or newer (Debian 12 and later: {INSTALL})"


def assumptions(core: Core) -> tuple[str, ...]:
    """Return what the figures rest on, a sentence each."""
    sizes = ", ".join(f"L{i + 1} {cache.bytes >> 10} KiB {cache.ways}-way" for i, cache in enumerate(core.caches))
    waits = " / ".join(str(cycles) for cycles in (*(c.cycles for c in core.caches[1:]), core.memory_cycles))
    return (
        f"pipeline: LLVM's model {core.model}{f', {core.instead}' if core.instead else ''}; one thread, branches "
        "predicted",
        "lower bound: every load finds its data in the first cache, instructions wait for free units only",
        f"upper bound: results are waited for, blocks run one after the other; {sizes} ({core.part}), nothing "
        f"prefetched, each miss waited for alone, nominally {waits} cycles",
        f"the method: on an x86-64 core, {CHECKED} times the lower bound (reports/reference/arm.md)",
    )


def read_blocks(path: Path) -> list[tuple[Block, ...]]:
    """Read the blocks of every run, as `count.c` writes them.

    Raises:
        DeviceError: the file is not of that form.
    """
    known: dict[str, tuple[bytes, int]] = {}
    runs: list[list[Block]] = []
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            word, *rest = line.split()
            if word == "run":
                runs.append([])
            elif word == "block":
                known[rest[0]] = (bytes.fromhex(rest[2]), int(rest[1]))
            else:
                code, instructions = known[word]
                runs[-1].append(Block(code=code, instructions=instructions, runs=int(rest[0])))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DeviceError(f"the counter's blocks cannot be read ({error!r}); set the device up again") from error
    return [tuple(blocks) for blocks in runs]


def mean(runs: Sequence[Sequence[Block]]) -> tuple[Block, ...]:
    """Return the blocks of some runs as one: equal code is one block, with the mean of its runs."""
    sums: dict[bytes, Block] = {}
    for block in (block for blocks in runs for block in blocks):
        before = sums[block.code].runs if block.code in sums else 0.0
        sums[block.code] = Block(code=block.code, instructions=block.instructions, runs=before + block.runs / len(runs))
    return tuple(sums.values())


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Cycles while all loads hit: those that keep units `busy`, and those of blocks `alone`, one after the other."""

    busy: float
    alone: float


def cycles_of(mca: Mca, core: Core, paths: Sequence[Sequence[Block]]) -> tuple[list[Cycles], float]:
    """Return cycles of each path on a core whose loads all hit, and the least share of instructions in blocks.

    The rest, blocks that hardly ran, is taken to be as fast as those.

    Raises:
        DeviceError: llvm-mca fails.
    """
    chosen = [_hot(blocks) for blocks in paths]
    known = _cycles(mca, core, list(dict.fromkeys(block.code for blocks in chosen for block in blocks)), chosen)
    cycles, shares = [], []
    for blocks, hot in zip(paths, chosen, strict=True):
        everything = sum(block.runs * block.instructions for block in blocks)
        told = [block for block in hot if block.code in known]
        covered = sum(block.runs * block.instructions for block in told)
        if not covered:
            raise DeviceError(f"{mca.version} could read none of the blocks that ran")
        scale = everything / covered
        cycles.append(
            Cycles(
                busy=scale * sum(block.runs * known[block.code].busy for block in told),
                alone=scale * sum(block.runs * known[block.code].alone for block in told),
            )
        )
        shares.append(covered / everything)
    return cycles, min(shares)


def _hot(blocks: Sequence[Block]) -> list[Block]:
    """Return those that executed the most instructions, until they cover enough."""
    order = sorted(blocks, key=lambda block: -block.runs * block.instructions)
    left = (1 - COVERED) * sum(block.runs * block.instructions for block in order)
    while order and left >= 0:
        left -= order[-1].runs * order[-1].instructions
        if left >= 0:
            order.pop()
    return order[:MOST_BLOCKS]


def _cycles(mca: Mca, core: Core, codes: Sequence[bytes], chosen: Sequence[Sequence[Block]]) -> dict[bytes, Cycles]:
    """Return cycles of one pass through each block."""
    lengths = {block.code: block.instructions for blocks in chosen for block in blocks}
    found: dict[bytes, Cycles | None] = {}
    for is_long, repeats in ((False, REPEATS), (True, REPEATS_LONG)):
        some = [code for code in codes if (lengths[code] > LONG) == is_long]
        if some:
            found |= zip(some, _analyse(mca, core, _disassemble(mca, core, some), repeats), strict=True)
    return {code: cycles for code, cycles in found.items() if cycles is not None}


def _disassemble(mca: Mca, core: Core, codes: Sequence[bytes]) -> list[list[str]]:
    """Return the instructions of each block as text for llvm-mca; '' for one that it is not to see."""
    arch = core.triple.split("-")[0]
    mark, text = _MARKS[arch]
    stream = "\n".join(" ".join(f"0x{byte:02x}" for byte in code + mark) for code in codes)
    # On aarch64 anything may come, on x86-64 the disassembler knows all anyway.
    attributes = ["--mattr=+all"] if arch == "aarch64" else []
    said = _run([mca.mc, "--disassemble", f"--triple={core.triple}", *attributes], stream)
    blocks: list[list[str]] = [[]]
    for line in (line.strip() for line in said.splitlines()):
        if line.startswith(text):
            while blocks[-1] and arch == "x86_64" and blocks[-1][-1] == "nop":
                blocks[-1].pop()
            blocks.append([])
        elif line and not line.startswith((".", "#")):
            blocks[-1].append(_rewritten(line, arch))
    if len(blocks) != len(codes) + 1:
        raise DeviceError(f"{mca.version} read {len(blocks) - 1} of {len(codes)} blocks of {core.triple}")
    return blocks[:-1]


def _rewritten(line: str, arch: str) -> str:
    for pattern, other in _REWRITES[arch]:
        line = re.sub(pattern, other, line)
    return line


def _analyse(mca: Mca, core: Core, blocks: Sequence[Sequence[str]], repeats: int) -> list[Cycles | None]:
    """Return cycles per pass of each block; 0 for one that llvm-mca is not to see, None for one it cannot read."""
    regions = [
        f"# LLVM-MCA-BEGIN b{index}\n" + "\n".join(lines) + "\n# LLVM-MCA-END\n"
        for index, lines in enumerate(blocks)
        if any(lines)
    ]
    empty = [Cycles(busy=0.0, alone=0.0) if lines else None for lines in blocks]
    if not regions:
        return empty
    command = [mca.mca, f"--mtriple={core.triple}", f"--mcpu={core.model}", f"--iterations={repeats}", "--json"]
    command += ["--skip-unsupported-instructions=any", "--instruction-info=0", "--resource-pressure=0"]
    command += [f"--mattr={core.features}"] if core.features else []
    told = json.loads(_run(command, "".join(regions)))
    views = {region["Name"]: region["SummaryView"] for region in told["CodeRegions"]}
    cycles = {
        name: Cycles(busy=view["BlockRThroughput"], alone=view["TotalCycles"] / repeats) for name, view in views.items()
    }
    return [cycles.get(f"b{index}", other) for index, other in enumerate(empty)]


def _run(command: Sequence[str], text: str) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=MCA_S, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{Path(command[0]).name} did not finish within {MCA_S} s") from None
    if done.returncode or "not a recognized processor" in done.stderr:  # which it would ignore
        raise DeviceError(f"{Path(command[0]).name} failed: {last_words(done.stderr)}")
    return done.stdout
