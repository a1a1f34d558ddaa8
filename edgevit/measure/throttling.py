"""Signs that a processor's clock is held down, from what a system shows without root."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

# Bits of the Raspberry Pi firmware's get_throttled (raspberrypi.com/documentation, "vcgencmd"); 16 to 19 are the same
# since boot, which says nothing of this measurement.
FIRMWARE_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
COOLING = re.compile(r"cpufreq|cpu|processor", re.IGNORECASE)


def throttling(root: Path = Path("/")) -> tuple[str, ...] | None:
    """Return what holds the clock down now, one phrase each; None where the system shows nothing of the kind."""
    found = [_firmware(root), _cooling(root), _policy(root)]
    if all(signs is None for signs in found):
        return None
    return tuple(sign for signs in found for sign in signs or ())


def throttle_count(root: Path = Path("/")) -> int | None:
    """Return how often x86 cores were throttled for heat since boot; None where it is not counted."""
    counters = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [value for value in map(_number, counters) if value is not None]
    return sum(counts) if counts else None


def firmware_signs(told: str) -> tuple[str, ...] | None:
    """Read `throttled=0x50005` or `50005`; None if it is neither."""
    number = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", told.strip())
    if number is None:
        return None
    bits = int(number[1], 16)
    return tuple(f"firmware: {name}" for bit, name in FIRMWARE_BITS.items() if bits >> bit & 1)


def _firmware(root: Path) -> tuple[str, ...] | None:
    signs = firmware_signs(_read(root / FIRMWARE))
    tool = shutil.which("vcgencmd") if signs is None and root == Path("/") else None
    if tool is None:
        return signs
    try:
        done = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return firmware_signs(done.stdout)


def _cooling(root: Path) -> tuple[str, ...] | None:
    """Return cooling devices of the CPU that are at work: a state above 0 lowers its clock."""
    devices = sorted((root / "sys/class/thermal").glob("cooling_device*"))
    states = [
        (kind, state)
        for device in devices
        if COOLING.search(kind := _read(device / "type").strip())
        and (state := _number(device / "cur_state")) is not None
    ]
    return tuple(f"{kind} at state {state}" for kind, state in states if state > 0) if states else None


def _policy(root: Path) -> tuple[str, ...] | None:
    """Return a limit below what the hardware can, set by a person or a daemon."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    allowed, possible = _number(folder / "scaling_max_freq"), _number(folder / "cpuinfo_max_freq")
    if allowed is None or possible is None:
        return None
    return (f"clock limited to {allowed / 1000:g} of {possible / 1000:g} MHz",) if allowed < possible else ()


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if re.fullmatch(r"\d+", text) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
