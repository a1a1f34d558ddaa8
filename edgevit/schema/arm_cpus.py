"""The one table of ARM processors: what each is called, has, and is taken for where it is emulated or estimated.

Features are those that qemu emulates, which tests hold against it. Sizes and ways of caches are those of the vendors'
documents, named in `source`. Latencies are load-to-use, rounded, and nominal: vendors do not publish them, and memory
depends on the board. They only enter the upper bound of an estimate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A data or unified cache as one core sees it; `cycles` from a load to the use of what it finds here."""

    bytes: int
    ways: int
    cycles: int


@dataclass(frozen=True, kw_only=True)
class Core:
    """What an estimate of cycles assumes of a processor.

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
        """Return the caches as `edgevit/devices/qemu/count.c` takes them."""
        return "+".join(f"{cache.bytes}:{cache.ways}" for cache in self.caches)

    def stall_cycles(self, misses: Sequence[float]) -> float:
        """Return what the misses of each cache cost if nothing else happens meanwhile."""
        reach = [cache.cycles for cache in self.caches] + [self.memory_cycles]
        return sum(count * (reach[i + 1] - reach[i]) for i, count in enumerate(misses))


@dataclass(frozen=True, kw_only=True)
class ArmCpu:
    """An ARM processor.

    Attributes:
        name: as given in `--device qemu:NAME`, and as LLVM has it where it is a product.
        sold_as: products with this core.
        part: part number as /proc/cpuinfo tells it.
        features: instruction sets by their names there.
        qemu: what qemu's option -cpu takes.
        code_flags: features beyond plain NEON that code compiled for it alone uses; None: none is compiled for it.
        core: what an estimate of cycles assumes of it.
    """

    name: str
    sold_as: str
    part: str
    features: tuple[str, ...]
    qemu: str
    code_flags: tuple[str, ...] | None
    core: Core


_KIB = 1024
_AARCH64 = "aarch64-linux-gnu"
_ARMV8 = ("fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
_A76 = (*_ARMV8, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")
_I8MM = (*_A76, "jscvt", "fcma", "sha3", "sha512", "asimdfhm", "flagm", "flagm2", "frint", "i8mm", "bf16")
# Those with the fewest features come first.
_CPUS = (
    ArmCpu(
        name="cortex-a53",
        sold_as="Raspberry Pi 3, Zero 2",
        part="0xd03",
        features=_ARMV8,
        qemu="cortex-a53",
        code_flags=(),
        core=Core(
            triple=_AARCH64,
            model="cortex-a53",
            part="Raspberry Pi 3",
            caches=(Cache(bytes=32 * _KIB, ways=4, cycles=3), Cache(bytes=512 * _KIB, ways=16, cycles=15)),
            memory_cycles=180,
            source="Arm Cortex-A53 TRM (DDI 0500), caches; Raspberry Pi documentation, BCM2837: 512 KB of L2",
        ),
    ),
    ArmCpu(
        name="cortex-a72",
        sold_as="Raspberry Pi 4",
        part="0xd08",
        features=_ARMV8,
        qemu="cortex-a72",
        code_flags=(),
        core=Core(
            triple=_AARCH64,
            model="cortex-a72",
            instead="which is LLVM's for Cortex-A57",
            part="Raspberry Pi 4 at 1.5 GHz",
            caches=(Cache(bytes=32 * _KIB, ways=2, cycles=4), Cache(bytes=1024 * _KIB, ways=16, cycles=20)),
            memory_cycles=200,
            source="Arm Cortex-A72 TRM (100095), caches; Raspberry Pi documentation, BCM2711: 1 MB of L2",
        ),
    ),
    ArmCpu(
        name="cortex-a76",
        sold_as="Raspberry Pi 5",
        part="0xd0b",
        features=_A76,
        qemu="cortex-a76",
        code_flags=("atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp"),
        core=Core(
            triple=_AARCH64,
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
    ),
    ArmCpu(
        name="armv8.6-i8mm",
        sold_as="cores with i8mm, as in Cortex-A710 and X2",
        # A part without SVE: of newer ones a runtime takes SVE for granted, and crashes.
        part="0xd0b",
        features=_I8MM,
        # `max` is no product, and in qemu 7.2 its SME gives wrong numbers: without SVE and SME it stands for this core.
        qemu="max,sve=off,sme=off",
        code_flags=None,
        core=Core(
            triple=_AARCH64,
            model="neoverse-n2",
            features="+i8mm,+bf16",
            instead="whose core is Cortex-A710's",
            part="a Cortex-A710 with 512 KiB of L2, no L3 counted",
            caches=(Cache(bytes=64 * _KIB, ways=4, cycles=4), Cache(bytes=512 * _KIB, ways=8, cycles=13)),
            memory_cycles=300,
            source="Arm Cortex-A710 TRM (101800), caches: 64 KiB of L1 and 512 KiB of L2 are choices of the vendor",
        ),
    ),
)
ARM_CPUS: Mapping[str, ArmCpu] = MappingProxyType({cpu.name: cpu for cpu in _CPUS})


def least_cpu(flags: Collection[str]) -> ArmCpu | None:
    """Return the processor of the table with the fewest features that has all of `flags`; None if none has."""
    return next((cpu for cpu in _CPUS if set(flags) <= set(cpu.features)), None)


def cpu_of_part(part: str | None) -> str | None:
    """Return the name of the product with this part number of /proc/cpuinfo; None for one that is not in the table."""
    return next((cpu.name for cpu in _CPUS if cpu.part == part and cpu.code_flags is not None), None)
