"""What a build lost against the original is counted from the original, and the limit is the near end of an interval."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.errors import AccuracyError
from edgevit.schema.claims import OriginalResult
from edgevit.verify.accuracy import Named, judge
from edgevit.verify.original import accuracy_rows, compare_original

TRUTH = np.arange(200) % 5
LIMITS = {"min_agreement": 0.0, "max_top1_drop": 1.0}


def wrong(count: int, start: int = 0) -> np.ndarray:
    classes = TRUTH.copy()
    classes[start : start + count] = (classes[start : start + count] + 1) % 5
    return classes


def named(floats: np.ndarray, build: np.ndarray) -> Named:
    return Named(build=build, floats=floats, cosines=np.ones(len(build)))


def compressed(labels: np.ndarray | None = TRUTH, max_drop: float | None = None) -> OriginalResult:
    """The original is wrong on 20 of 200, the compressed model on 50, the build on 54."""
    return compare_original(wrong(20), named(wrong(50), wrong(54)), labels, compressed=True, max_drop=max_drop)


def test_losses_are_against_the_original_and_add_up() -> None:
    result = compressed()
    assert result.top1 and result.original_top1 and result.drop and result.compression and result.quantization
    assert (result.original_top1.hits, result.top1.hits) == (180, 146)
    drops = [d.value for d in (result.drop, result.compression, result.quantization)]
    assert drops == pytest.approx([0.17, 0.15, 0.02])
    assert result.compressed_agreement and result.compressed_agreement.hits == 170
    assert (result.agreement.hits, result.quantized_agreement.hits) == (166, 196)
    assert result.summary.startswith("top-1 73.0% (66.5% to 78.7%, n = 200), original 90.0%: lost 17.0 points (")
    assert ", 15.0 to compression, 2.0 to quantization; agrees with the original on 83.0% (" in result.summary


def test_a_dense_model_loses_to_quantization_alone() -> None:
    result = compare_original(wrong(20), named(wrong(20), wrong(24)), TRUTH, compressed=False)
    assert result.compression is None and result.compressed_agreement is None
    assert result.drop and result.drop.value == pytest.approx(0.02)
    assert "compression" not in result.summary


def test_more_lost_than_allowed_fails_and_says_to_what() -> None:
    said = (
        r"lost 17\.0 points of top-1 .* \(at least 11\.8, n = 200; 15\.0 of it went to compression\), at most 5 allowed"
    )
    with pytest.raises(AccuracyError, match=said):
        compressed(max_drop=5.0)


def test_the_near_end_of_the_interval_decides() -> None:
    assert compressed(max_drop=12.0).max_drop == 12.0
    assert "at most 12 points may be lost, which 200 images cannot tell from this" in compressed(max_drop=12.0).summary
    assert compressed(max_drop=20.0).summary.endswith("at most 20 points may be lost")
    with pytest.raises(AccuracyError, match=r"at most 11\.5 allowed"):
        compressed(max_drop=11.5)


def test_without_labels_lost_agreement_counts() -> None:
    assert compressed(None).drop is None
    assert compressed(None, max_drop=13.0).agreement.high == pytest.approx(0.876, abs=1e-3)
    with pytest.raises(
        AccuracyError, match=r"lost 17\.0 points of agreement .*at least 12\.4, n = 200\), at most 12 all"
    ):
        compressed(None, max_drop=12.0)


def rows(floats: np.ndarray, labels: np.ndarray | None, against: OriginalResult | None) -> list[tuple[str, str, str]]:
    result = judge(named(floats, wrong(54)), labels, **LIMITS)
    return [(row.model, row.metric, row.against) for row in accuracy_rows(result, against)]


def test_rows_begin_with_the_original() -> None:
    assert rows(wrong(50), TRUTH, compressed()) == [
        ("original", "top1", "float"),
        ("compressed", "top1", "float"),
        ("compressed", "agreement", "original"),
        ("bundle", "top1", "float"),
        ("bundle", "agreement", "original"),
        ("bundle", "agreement", "float"),
    ]
    assert rows(wrong(50), None, compressed(None)) == [
        ("compressed", "agreement", "original"),
        ("bundle", "agreement", "original"),
        ("bundle", "agreement", "float"),
    ]


def test_rows_of_a_dense_model_name_no_compressed_one() -> None:
    dense = compare_original(wrong(20), named(wrong(20), wrong(54)), TRUTH, compressed=False)
    assert rows(wrong(20), TRUTH, dense) == [
        ("original", "top1", "float"),
        ("bundle", "top1", "float"),
        ("bundle", "agreement", "original"),
    ]


def test_rows_without_the_original_claim_nothing_about_it() -> None:
    assert rows(wrong(50), TRUTH, None) == [
        ("compressed", "top1", "float"),
        ("bundle", "top1", "float"),
        ("bundle", "agreement", "float"),
    ]
