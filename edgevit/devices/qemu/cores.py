"""Cores as the cycle estimate sees them: LLVM's pipeline model, and the caches of a part that is sold with them.

Sizes and ways are those of the vendors' documents, named in `source`. Latencies are load-to-use, rounded, and nominal:
vendors do not publish them, and memory depends on the board. They only enter the upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# tests/benchmarks/test_arm.py holds it against what benchmarks/estimate_error.py wrote.
CHECKED = "native runs took 1.10 to 1.31"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A data or unified cache as one core sees it; `cycles` from a load to the use of what it finds here."""

    bytes: int
    ways: int
    cycles: int


@dataclass(frozen=True, kw_only=True)
class Core:
    """What an estimate for a processor assumes.

    Attributes:
        triple: LLVM's name of the architecture.
        model: what llvm-mca's option -mcpu takes.
        features: what its option -mattr takes, for instructions that `model` does not have of itself.
        instead: why that model stands for the processor, if it is another's.
        part: the product whose caches and memory these are.
        caches: the nearest first.
        memory_cycles: from a load to the use of what only memory has, at the part's clock.
        source: where sizes and ways are from.
    """

    triple: str
    model: str
    features: str = ""
    instead: str = ""
    part: str
    caches: tuple[Cache, ...]
    memory_cycles: int
    source: str

    @property
    def geometry(self) -> str:
        """The caches as `count.c` takes them."""
        return "+".join(f"{cache.bytes}:{cache.ways}" for cache in self.caches)

    def stall_cycles(self, misses: Sequence[float]) -> float:
        """What the misses of each cache cost if nothing else happens meanwhile."""
        reach = [cache.cycles for cache in self.caches] + [self.memory_cycles]
        return sum(count * (reach[i + 1] - reach[i]) for i, count in enumerate(misses))

    def assumptions(self) -> tuple[str, ...]:
        """What the figures rest on, a sentence each."""
        sizes = ", ".join(f"L{i + 1} {cache.bytes >> 10} KiB {cache.ways}-way" for i, cache in enumerate(self.caches))
        waits = " / ".join(str(cycles) for cycles in (*(c.cycles for c in self.caches[1:]), self.memory_cycles))
        return (
            f"pipeline: LLVM's model {self.model}{f', {self.instead}' if self.instead else ''}; one thread, branches "
            "predicted",
            "lower bound: every load finds its data in the first cache, instructions wait for free units only",
            f"upper bound: results are waited for, blocks run one after the other; {sizes} ({self.part}), nothing "
            f"prefetched, each miss waited for alone, nominally {waits} cycles",
            f"the method: on an x86-64 core, {CHECKED} times the lower bound (reports/reference/arm.md)",
        )


_KIB = 1024
CORES: Mapping[str, Core] = MappingProxyType(
    {
        "cortex-a53": Core(
            triple="aarch64-linux-gnu",
            model="cortex-a53",
            part="Raspberry Pi 3",
            caches=(Cache(bytes=32 * _KIB, ways=4, cycles=3), Cache(bytes=512 * _KIB, ways=16, cycles=15)),
            memory_cycles=180,
            source="Arm Cortex-A53 TRM (DDI 0500), caches; Raspberry Pi documentation, BCM2837: 512 KB of L2",
        ),
        "cortex-a72": Core(
            triple="aarch64-linux-gnu",
            model="cortex-a72",
            instead="which is LLVM's for Cortex-A57",
            part="Raspberry Pi 4 at 1.5 GHz",
            caches=(Cache(bytes=32 * _KIB, ways=2, cycles=4), Cache(bytes=1024 * _KIB, ways=16, cycles=20)),
            memory_cycles=200,
            source="Arm Cortex-A72 TRM (100095), caches; Raspberry Pi documentation, BCM2711: 1 MB of L2",
        ),
        "cortex-a76": Core(
            triple="aarch64-linux-gnu",
            model="neoverse-n1",
            features="+dotprod,+fullfp16",
            instead="Cortex-A76's server twin, because LLVM has Cortex-A57's for Cortex-A76 itself",
            part="Raspberry Pi 5 at 2.4 GHz",
            caches=(
                Cache(bytes=64 * _KIB, ways=4, cycles=4),
                Cache(bytes=512 * _KIB, ways=8, cycles=11),
                Cache(bytes=2048 * _KIB, ways=16, cycles=40),
            ),
            memory_cycles=300,
            source="Arm Cortex-A76 TRM (100798), caches; Raspberry Pi documentation, BCM2712: 512 KB of L2, 2 MB of L3",
        ),
        "armv8.6-i8mm": Core(
            triple="aarch64-linux-gnu",
            model="neoverse-n2",
            features="+i8mm,+bf16",
            instead="whose core is Cortex-A710's",
            part="a Cortex-A710 with 512 KiB of L2, no L3 counted",
            caches=(Cache(bytes=64 * _KIB, ways=4, cycles=4), Cache(bytes=512 * _KIB, ways=8, cycles=13)),
            memory_cycles=300,
            source="Arm Cortex-A710 TRM (101800), caches: 64 KiB of L1 and 512 KiB of L2 are choices of the vendor",
        ),
    }
)
