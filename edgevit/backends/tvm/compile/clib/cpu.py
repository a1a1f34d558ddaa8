"""The C that asks an x86-64 CPU for what a library was compiled for; other architectures tell only their system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

# As /proc/cpuinfo names them: (leaf, subleaf, register, bit) of the instruction CPUID.
CPUID: Mapping[str, tuple[int, int, str, int]] = MappingProxyType(
    {
        "ssse3": (1, 0, "c", 9),
        "fma": (1, 0, "c", 12),
        "sse4_1": (1, 0, "c", 19),
        "sse4_2": (1, 0, "c", 20),
        "movbe": (1, 0, "c", 22),
        "popcnt": (1, 0, "c", 23),
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

/* Whether the CPU has what the kernels need{and_saved}. */
static int cpu_suffices(void) {{{saved}
  return {needs};
}}
"""
SAVED = """
  unsigned low, high;
  if (!has(1, 0, 2, 1u << 27)) return 0; /* XGETBV */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  if ((low & {state}u) != {state}u) return 0;"""
WIDE = ("avx", "fma", "f16c")  # what begins so uses vectors that the system has to save
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
    needs = " &&\n         ".join(
        f"has({leaf:#x}, {part}, {'abcd'.index(register)}, {mask:#x}u)" for (leaf, part, register), mask in bits.items()
    )
    if not needs:
        return NONE
    if not any(flag.startswith(WIDE) for flag in flags):
        return CHECK.format(and_saved="", saved="", needs=needs)
    state = AVX512_STATE if any(flag.startswith("avx512") for flag in flags) else AVX_STATE
    saved = SAVED.format(state=f"{state:#x}")
    return CHECK.format(and_saved=", and the system saves its vectors", saved=saved, needs=needs)
