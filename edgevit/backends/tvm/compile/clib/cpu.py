"""The C that asks an x86-64 CPU for what a library was compiled for; other architectures tell only their system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

# As /proc/cpuinfo names them: (leaf, subleaf, register, bit) of the instruction CPUID.
CPUID: Mapping[str, tuple[int, int, str, int]] = MappingProxyType(
    {
        "fma": (1, 0, "c", 12),
        "movbe": (1, 0, "c", 22),
        "f16c": (1, 0, "c", 29),
        "bmi1": (7, 0, "b", 3),
        "avx2": (7, 0, "b", 5),
        "bmi2": (7, 0, "b", 8),
        "avx512f": (7, 0, "b", 16),
        "avx512dq": (7, 0, "b", 17),
        "avx512cd": (7, 0, "b", 28),
        "avx512bw": (7, 0, "b", 30),
        "avx512vl": (7, 0, "b", 31),
        "avx512_vnni": (7, 0, "c", 11),
        "avx_vnni": (7, 1, "a", 4),
        "abm": (0x80000001, 0, "c", 5),
    }
)
AVX_STATE, AVX512_STATE = 0x6, 0xE6  # of XCR0: what the system saves of vectors

CHECK = """#include <cpuid.h>

static int has(unsigned leaf, unsigned piece, int which, unsigned bits) {{
  unsigned told[4];
  if (!__get_cpuid_count(leaf, piece, &told[0], &told[1], &told[2], &told[3])) return 0;
  return (told[which] & bits) == bits;
}}

/* Whether the CPU has what the kernels need, and the system saves its vectors. */
static int cpu_suffices(void) {{
  unsigned low, high;
  if (!has(1, 0, 2, 1u << 27)) return 0; /* XGETBV */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  return (low & {state}u) == {state}u{needs};
}}
"""
NONE = """/* Only the system tells what this CPU has; who starts the program has to look. */
static int cpu_suffices(void) { return 1; }
"""


def cpu_check(architecture: str, flags: Sequence[str]) -> str:
    """Return C with a function `cpu_suffices`, which asks for all of these flags that CPUID tells."""
    if architecture != "x86_64":
        return NONE
    bits: dict[tuple[int, int, str], int] = {}
    for flag in flags:
        if flag in CPUID:
            leaf, part, register, bit = CPUID[flag]
            bits[leaf, part, register] = bits.get((leaf, part, register), 0) | 1 << bit
    needs = "".join(
        f" &&\n         has({leaf:#x}, {part}, {'abcd'.index(register)}, {mask:#x}u)"
        for (leaf, part, register), mask in bits.items()
    )
    state = AVX512_STATE if any(flag.startswith("avx512") for flag in flags) else AVX_STATE
    return CHECK.format(state=f"{state:#x}", needs=needs)
