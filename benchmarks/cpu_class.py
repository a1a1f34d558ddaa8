"""The class of a CPU, which a report's name says: figures of one class are never given as those of another.

Without VNNI there are cores that compute 256 bits at once, and such that do so in two halves of 128 (Zen and Zen+:
Agner Fog, The microarchitecture of Intel, AMD and VIA CPUs). There int8 kernels gain little or nothing over float.
"""

from __future__ import annotations

from pathlib import Path

from edgevit.measure.environment import cpu_flags

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# Family, and the first model that computes 256 bits at once, by vendor as /proc/cpuinfo names it.
HALVES = {"AuthenticAMD": (23, 0x30), "HygonGenuine": (24, 0x100)}


def suffix(root: Path = Path("/")) -> str:
    """Return what a report's name has behind it: `-vnni`, `-128bit` (no VNNI, vectors in halves) or nothing."""
    if VNNI & cpu_flags(root):
        return "-vnni"
    file = root / "proc/cpuinfo"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family, whole = HALVES.get(told.get("vendor_id", ""), (0, 0))
    halves = family > 0 and told.get("cpu family") == str(family) and int(told.get("model", whole)) < whole
    return "-128bit" if halves else ""
