"""An operating point by its name, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgevit
from edgevit.errors import OperatingPointError
from tests.bundle.test_runner import POINTS
from tests.bundles import sample_bundle
from tests.tiny import tiny_images, tiny_spec


def test_a_bundle_runs_at_a_point_by_its_name(tmp_path: Path) -> None:
    image = tiny_images(tiny_spec(), 1)
    with edgevit.open_bundle(sample_bundle(tmp_path / "tiny", changes={"points": POINTS})) as bundle:
        gates = [int(bundle.run(image, effort).gates.sum()) for effort in ("fastest", "full", "1e30", -1e30)]
        assert gates == [0, 4, 4, 0]
        with pytest.raises(OperatingPointError, match="no operating point 'warp': it has fastest, full"):
            bundle.run(image, "warp")
