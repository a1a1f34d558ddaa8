"""What a test does without a tool or a package that it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip for want of something; fail where the project is checked as a whole and everything must be there."""
    if os.environ.get("EDGEVIT_CI"):
        pytest.fail(reason)
    pytest.skip(reason)
