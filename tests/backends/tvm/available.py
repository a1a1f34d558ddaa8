"""Whether these tests can run: TVM is an extra that not every installation has."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="TVM is not installed: pip install 'edgevit[tvm]'")


def import_or_skip() -> None:
    """Skip a module of tests whose imports need TVM."""
    if find_spec("tvm") is None:
        pytest.skip("TVM is not installed: pip install 'edgevit[tvm]'", allow_module_level=True)
