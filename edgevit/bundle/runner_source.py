"""Join the source of a bundle's own runner: the common part, and the part of its runtime."""

from __future__ import annotations

import re
from pathlib import Path

COMMON = Path(__file__).with_name("runner.py")
# From the line before the runtime's part to the one after it.
PLACE = re.compile(r"^# What stands here belongs.*?^# ---- end of .*?$", re.M | re.S)
# A part is a module of its own here; in a bundle all that it takes from the common part stands in the same file.
DOCSTRING = re.compile(r'\A""".*?"""\n', re.S)
OWN = re.compile(r"^from __future__ import .*\n|^from edgevit\.bundle\.runner import [^(\n]*\n", re.M)


def joined(part: Path) -> str:
    """Return the source of `runner/run.py` with the part of a runtime, a module that offers `USED` and `load_model`.

    Raises:
        ValueError: the part imports from this package what is not in the common part.
    """
    common = COMMON.read_text(encoding="utf-8")
    own = OWN.sub("", DOCSTRING.sub("", part.read_text(encoding="utf-8"), count=1))
    if re.search(r"^\s*(from|import) edgevit", own, re.M):
        raise ValueError(f"{part} imports from edgevit, which no bundle has; allowed: from edgevit.bundle.runner")
    there = {line.strip() for line in common.splitlines() if line.strip().startswith(("import ", "from "))}
    kept = "\n".join(line for line in own.splitlines() if line not in there).strip()
    before, after = PLACE.split(common)
    return f"{before}{kept}{after}"
