"""The one comparison of golden outputs, which every machine's go through."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.bundle.read import (
    WORST_ERROR,
    compare_golden,
    load_golden,
    load_golden_tokens,
    open_bundle,
    rerun_golden,
    verify_bundle,
)
from edgevit.devices import local
from edgevit.errors import BundleError, ParityError
from tests.bundles import sample_bundle

MERGING: dict[str, Any] = {"gated": False, "image": (64, 64), "tokens": "1:0-24@0.2"}


def test_numbers_of_tokens_must_be_equal(tmp_path: Path) -> None:
    with open_bundle(sample_bundle(tmp_path / "tiny", **MERGING)) as bundle:
        case = bundle.manifest.golden[0]
        _, logits, gates = load_golden(bundle, case)
        tokens = load_golden_tokens(bundle, case)
        assert tokens is not None and tokens.tolist() == [64] and case.tokens in case.files
        assert compare_golden(bundle, case, logits, gates, tokens).parity(0.5).held
        other = compare_golden(bundle, case, logits, gates, tokens - 8)
        assert not other.held and other.changed_tokens == ("56 instead of 64 at point 1",)
        told = other.parity(0.5)
        assert not told.held and told.gates_equal and not told.tokens_equal and told.other == "other numbers of tokens"
        for wrong in (None, np.zeros(2, np.int32)):
            with pytest.raises(BundleError, match=r"the model gives tokens .*, the golden ones are \[1\]"):
                compare_golden(bundle, case, logits, gates, wrong)


def test_a_runner_is_asked_for_its_tokens(tmp_path: Path) -> None:
    with open_bundle(sample_bundle(tmp_path / "tiny", **MERGING)) as bundle, local.loaded(bundle) as runner:
        assert all(result.held for result in rerun_golden(bundle, runner))
        path = bundle.folder / str(bundle.manifest.golden[1].tokens)
        np.save(path, np.load(path) + np.int32(8))
        with pytest.raises(ParityError, match="all_skipped: .*; tokens left: 47 instead of 55 at point 1"):
            verify_bundle(bundle, runner)


def test_tokens_of_another_type_are_refused(tmp_path: Path) -> None:
    with open_bundle(sample_bundle(tmp_path / "tiny", **MERGING)) as bundle:
        case = bundle.manifest.golden[0]
        np.save(bundle.folder / str(case.tokens), np.zeros(1))
        with pytest.raises(BundleError, match="expected int32"):
            load_golden_tokens(bundle, case)


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
