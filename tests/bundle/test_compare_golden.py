"""The one comparison of golden outputs, which every machine's go through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgevit.bundle.read import WORST_ERROR, compare_golden, load_golden, open_bundle
from edgevit.errors import BundleError
from tests.bundles import sample_bundle


def test_what_differs_is_told_and_nan_is_as_far_off_as_can_be(tmp_path: Path) -> None:
    with open_bundle(sample_bundle(tmp_path / "tiny")) as bundle:
        case = bundle.manifest.golden[0]
        _, logits, gates = load_golden(bundle, case)
        same = compare_golden(bundle, case, logits, gates)
        assert (same.held, same.logit_error, same.changed_gates) == (True, 0.0, ())
        assert same.parity(0.5).held
        off = compare_golden(bundle, case, logits + np.float32(0.25), gates)
        assert not off.held and off.parity(0.5).logit_error == pytest.approx(0.25)
        other = compare_golden(bundle, case, logits, 1 - gates)
        assert len(other.changed_gates) == len(gates) and not other.held and not other.parity(0.5).held
        for value in (np.nan, np.inf):
            broken = compare_golden(bundle, case, np.full_like(logits, value), gates)
            assert not broken.held and broken.parity(0.5).logit_error == WORST_ERROR
        assert dataclasses.replace(broken.parity(0.5), logit_error=0.0).held
        with pytest.raises(BundleError, match="the model gives logits"):
            compare_golden(bundle, case, logits[:, :-1], gates)
