"""Whether these tests can run: TVM is an extra that not every installation has."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

REASON = "TVM is not installed: pip install 'edgevit[tvm]'"
MISSING = find_spec("tvm") is None and os.environ.get("EDGEVIT_CI") != "1"
needs_tvm = pytest.mark.skipif(MISSING, reason=REASON)


def import_or_skip() -> None:
    """Skip a module of tests whose imports need TVM; where it must be there they fail."""
    if MISSING:
        pytest.skip(REASON, allow_module_level=True)
