"""What a kernel is parametrised by besides its shape: the instruction set, and the register tile per product.

A product `[rows, depth] x [depth, columns]` runs as tiles of `rows x vectors` accumulators that stay in registers. Rows
left over get a shorter tile of their own; columns are padded to whole vectors in the packed weights. Nothing is
predicated: a predicated tile costs up to 20 times a padded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from edgevit.errors import TargetError
from edgevit.schema.arm_cpus import ARM_CPUS


@dataclass(frozen=True, kw_only=True)
class Isa:
    """An instruction set as the kernels see it.

    `lanes` are float32 per vector register, `target` is for LLVM, `flags` are what the CPU must have, as /proc/cpuinfo
    names them, `threads` is how many share a kernel.
    """

    name: str
    lanes: int
    registers: int
    target: Mapping[str, Any]
    flags: tuple[str, ...]
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Accumulators of one product's inner loop: `rows` x `vectors` registers."""

    rows: int
    vectors: int


class Instructions(Protocol):
    """How integers are multiplied; see `dots.Dot`."""

    @property
    def label(self) -> str: ...

    @property
    def chains(self) -> int: ...

    @property
    def together(self) -> int: ...

    def registers(self, tile: Tile) -> int: ...

    def loads(self, tile: Tile) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Product:
    """The shape of one product: `[rows, depth] x [depth, columns]`, columns before padding; float without a `dot`."""

    rows: int
    columns: int
    depth: int
    dot: Instructions | None = None


# Lanes of NEON and SSE: there a product multiplies by one lane of a register, elsewhere by a broadcast from memory.
BY_LANE = 4
# Sums that are to be in flight so that none is waited for: two a cycle, each done four cycles later.
FMA_CHAINS = 8
# What a load costs beside a multiplication: both start together, twice a cycle, unless the load comes from afar.
LOAD = 0.2
# And if it comes from the second cache, since a panel is larger than most of the first one.
FAR_LOAD, NEAR_BYTES = 0.6, 40 << 10
# What the kernels and LLVM take for granted in x86-64-v2: whatever has these has the rest of it.
V2 = ("ssse3", "sse4_1", "sse4_2", "popcnt")
# What LLVM takes for granted in x86-64-v3 beyond the kernels' own instructions.
V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
V8_2 = ("asimd", "atomics", "asimdrdm", "asimddp")

ISAS: Mapping[str, Isa] = MappingProxyType(
    {
        isa.name: isa
        for isa in (
            Isa(
                name="sse42",
                lanes=4,
                registers=16,
                target={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"},
                flags=V2,
            ),
            Isa(
                name="avx2",
                lanes=8,
                registers=16,
                target={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
                flags=V3,
            ),
            Isa(
                name="avx512",
                lanes=16,
                registers=32,
                target={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4"},
                flags=V4,
            ),
            Isa(
                name="avxvnni",
                lanes=8,
                registers=16,
                target={
                    "kind": "llvm",
                    "mtriple": "x86_64-linux-gnu",
                    "mcpu": "x86-64-v3",
                    "mattr": ("+avxvnni",),
                },
                flags=(*V3, "avx_vnni"),
            ),
            Isa(
                name="avx512vnni",
                lanes=16,
                registers=32,
                target={
                    "kind": "llvm",
                    "mtriple": "x86_64-linux-gnu",
                    "mcpu": "x86-64-v4",
                    "mattr": ("+avx512vnni",),
                },
                flags=(*V4, "avx512_vnni"),
            ),
            Isa(
                name="neon",
                lanes=4,
                registers=32,
                target={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "generic"},
                flags=("asimd",),
            ),
            Isa(
                name="dotprod",
                lanes=4,
                registers=32,
                target={
                    "kind": "llvm",
                    "mtriple": "aarch64-linux-gnu",
                    "mcpu": "generic",
                    "mattr": ("+v8.2a", "+dotprod"),
                },
                flags=V8_2,
            ),
            Isa(
                name="i8mm",
                lanes=4,
                registers=32,
                target={
                    "kind": "llvm",
                    "mtriple": "aarch64-linux-gnu",
                    "mcpu": "generic",
                    "mattr": ("+v8.2a", "+dotprod", "+i8mm"),
                },
                flags=(*V8_2, "i8mm"),
            ),
        )
    }
)

# CPUs that code can be scheduled for: architecture, and flags beyond those of the plain instruction set.
CPUS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {cpu.name: ("aarch64", cpu.code_flags) for cpu in ARM_CPUS.values() if cpu.code_flags is not None}
)
# CPUs whose code is scheduled as for another one: LLVM's own schedule for the in-order Cortex-A53 begins so many
# products at once that sums no longer fit the registers, which costs a seventh more instructions.
SCHEDULED_AS: Mapping[str, str] = MappingProxyType({"cortex-a53": "generic"})


def isa(name: str) -> Isa:
    """Return the instruction set `name`.

    Raises:
        TargetError: no kernels for it.
    """
    if name not in ISAS:
        raise TargetError(f"no kernels for the instruction set {name!r}; there are kernels for: {', '.join(ISAS)}")
    return ISAS[name]


def tuned(isa: Isa, cpu: str) -> Isa:
    """Return the same kernels compiled for one CPU, which the library then needs.

    Raises:
        TargetError: no such CPU, or of another architecture.
    """
    architecture = isa.target["mtriple"].split("-")[0]
    fitting = [name for name, (machine, _) in CPUS.items() if machine == architecture]
    if cpu not in fitting:
        raise TargetError(f"no CPU {cpu!r} with {isa.name}; there are: {', '.join(fitting) or 'none'}")
    return replace(isa, target={**isa.target, "mcpu": SCHEDULED_AS.get(cpu, cpu)}, flags=(*isa.flags, *CPUS[cpu][1]))


class _Float:
    """Accumulators, one row of weights and one broadcast; with `by_lane` a vector of every row, for 4 steps."""

    together = 1

    def __init__(self, by_lane: bool) -> None:
        self.by_lane = by_lane
        self.chains, self.label = 0 if by_lane else FMA_CHAINS, "float"

    def registers(self, tile: Tile) -> int:
        return tile.rows * tile.vectors + tile.vectors + (tile.rows if self.by_lane else 1)

    def loads(self, tile: Tile) -> float:
        return 1 / tile.rows + 1 / tile.vectors / (BY_LANE if self.by_lane else 1)


def tiles(isa: Isa, product: Product) -> Iterator[Tile]:
    """Yield every tile that fits the registers, fewest loads first."""
    how: Instructions = product.dot or _Float(isa.lanes == BY_LANE)
    candidates = (
        Tile(rows=rows, vectors=vectors)
        for vectors in range(1, min(-(-product.columns // isa.lanes), isa.registers) + 1)
        for rows in range(1, min(product.rows, isa.registers) + 1)
        if rows % how.together == 0 or rows == product.rows
    )
    fitting = [tile for tile in candidates if how.registers(tile) <= isa.registers]
    # In ViT shapes on Zen 3: 4 x 3 and 6 x 2 reach 87 GFLOP/s (the core's peak is 89), 3 x 3 and 5 x 2 83, 12 x 1 74.
    time = (lambda t: _slots(t, product, isa.lanes, how.chains)) if how.chains else how.loads
    return iter(sorted(fitting, key=lambda t: (time(t), -t.rows * t.vectors, t.vectors)))


def _slots(tile: Tile, product: Product, lanes: int, chains: int) -> float:
    """Return multiplications of a step of the depth, those that a narrow or short tile leaves out included."""

    def extents(size: int, part: int) -> list[tuple[int, int]]:
        return [(part, size // part), (size % part, int(size % part > 0))]

    packed_bytes = product.depth * tile.vectors * lanes * (4 if product.dot is None else 1)
    load = FAR_LOAD if packed_bytes > NEAR_BYTES else LOAD
    down, across = extents(product.rows, tile.rows), extents(-(-product.columns // lanes), tile.vectors)
    return sum(
        times * count * (max(rows * vectors, chains) + LOAD * rows + load * vectors)
        for rows, times in down
        for vectors, count in across
    )


def default_tile(isa: Isa, product: Product) -> Tile:
    """Return the tile for a shape that nobody has tuned: the one with the fewest loads per multiply-add."""
    if product.rows == 1:
        return Tile(rows=1, vectors=min(8, (isa.registers - 1) // 2, -(-product.columns // isa.lanes)))
    return next(tiles(isa, product))


def pad(size: int, lanes: int) -> int:
    """Return `size` rounded up to whole vectors."""
    return -(-size // lanes) * lanes


def panels(columns: int, tile: Tile, lanes: int) -> tuple[int, int]:
    """Return (number of full panels, vectors of the last, narrower one), for padded columns."""
    vectors = columns // lanes
    return vectors // tile.vectors, vectors % tile.vectors
