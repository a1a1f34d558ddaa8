from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.errors import AccuracyError
from edgevit.util.strict_json import to_data
from edgevit.verify.accuracy import Named, Run, check_accuracy, fraction, judge, name_classes, paired_drop

CLASSES = 5


def model(classes: np.ndarray) -> Run:
    """The image's first pixel is its number; the model names `classes[number]`."""

    def run(image: np.ndarray) -> np.ndarray:
        logits = np.zeros((1, CLASSES), np.float32)
        logits[0, classes[int(image[0, 0, 0, 0])]] = 1.0
        return logits

    return run


def images(count: int) -> np.ndarray:
    return np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 3))


TRUTH = np.arange(200) % CLASSES


def wrong(count: int, start: int = 0) -> np.ndarray:
    classes = TRUTH.copy()
    classes[start : start + count] = (classes[start : start + count] + 1) % CLASSES
    return classes


def test_figures_are_those_of_the_predictions() -> None:
    build, reference = wrong(30), wrong(20)
    result = check_accuracy(model(build), model(reference), images(200), TRUTH, min_agreement=0.9, max_top1_drop=0.05)
    assert result.top1 and result.float_top1 and result.drop
    assert (result.top1.hits, result.float_top1.hits, result.agreement.hits) == (170, 180, 190)
    assert result.drop.value == pytest.approx(0.05)
    assert result.cosine_min == 0.0 and result.cosine_mean == pytest.approx(0.95)
    assert result.summary.startswith("agrees with the float model on 95.0% (91.0% to 97.3%, n = 200); top-1 85.0% (")
    assert to_data(result)["agreement"]["low"] == result.agreement.low


def test_it_does_not_matter_how_many_threads_call_the_float_model() -> None:
    found = [name_classes(model(wrong(3)), model(TRUTH), images(50), threads=threads) for threads in (1, 3, None)]
    for one in found:
        assert one.build.tolist() == wrong(3)[:50].tolist() and one.floats.tolist() == TRUTH[:50].tolist()
        np.testing.assert_array_equal(one.cosines, found[0].cosines)


def test_without_labels_only_agreement_is_judged() -> None:
    result = check_accuracy(model(TRUTH), model(TRUTH), images(50), min_agreement=1.0, max_top1_drop=0.0)
    assert (result.agreement.value, result.agreement.high, result.top1, result.drop) == (1.0, 1.0, None, None)
    assert result.cosine_min == 1.0


def test_low_agreement_fails() -> None:
    said = r"float model that was quantized is 80\.0% \(73\.\d% to 85\.\d%, n = 200\), at least 95\.0%"
    with pytest.raises(AccuracyError, match=said):
        check_accuracy(model(wrong(40)), model(TRUTH), images(200), min_agreement=0.95, max_top1_drop=1.0)


def test_what_other_pairs_explain_does_not_count_against_quantization() -> None:
    floats, build = np.arange(100), np.where(np.arange(100) < 90, np.arange(100), 0)
    named = Named(build=build, floats=floats, cosines=np.ones(100), explained=np.arange(100) >= 92)
    with pytest.raises(AccuracyError, match=r"is 90\.0% .*, at least 97\.0% asked"):
        judge(replace(named, explained=None), None, min_agreement=0.97, max_top1_drop=1.0)
    found = judge(named, None, min_agreement=0.97, max_top1_drop=1.0)
    assert (found.agreement.hits, found.explained) == (90, 8)
    assert ", 98.0% where it merges the same tokens" in found.summary
    with pytest.raises(AccuracyError, match=r"is 90\.0% .* \(91\.0% with the same tokens merged\), at least 97\.0%"):
        judge(replace(named, explained=np.arange(100) == 99), None, min_agreement=0.97, max_top1_drop=1.0)
    # Lost top-1 is lost, whatever explains it.
    with pytest.raises(AccuracyError, match="drops top-1"):
        judge(named, floats, min_agreement=0.0, max_top1_drop=0.02)


def test_lost_top1_fails_although_agreement_is_not_asked() -> None:
    with pytest.raises(
        AccuracyError, match=r"quantization drops top-1 by 10\.0% \(5\.\d% to 14\.\d%, n = 200\), at most 0\.8%"
    ):
        check_accuracy(model(wrong(20)), model(TRUTH), images(200), TRUTH, min_agreement=0.0, max_top1_drop=0.008)


def test_a_gain_is_no_drop() -> None:
    result = check_accuracy(model(TRUTH), model(wrong(20)), images(200), TRUTH, min_agreement=0.5, max_top1_drop=0.0)
    assert result.drop and result.drop.value == pytest.approx(-0.1)


def test_few_images_do_not_fail_a_build_by_chance() -> None:
    # 9 of 10 agree: no evidence against 95 %. 180 of 200 is.
    check_accuracy(model(wrong(1)), model(TRUTH), images(10), min_agreement=0.95, max_top1_drop=1.0)
    with pytest.raises(AccuracyError, match=r"90\.0%"):
        check_accuracy(model(wrong(20)), model(TRUTH), images(200), min_agreement=0.95, max_top1_drop=1.0)


@pytest.mark.parametrize(("count", "labels", "message"), [(0, None, "0 images"), (4, TRUTH[:3], "3 labels for 4")])
def test_bad_input_is_refused(count: int, labels: np.ndarray | None, message: str) -> None:
    with pytest.raises(AccuracyError, match=message):
        check_accuracy(model(TRUTH), model(TRUTH), images(count), labels, min_agreement=0.9, max_top1_drop=0.1)


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, method 3.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        result = fraction(np.arange(n) < hits)
        assert [result.low, result.high] == pytest.approx([low, high], abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_intervals_hold_their_value(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (np.array(column) for column in zip(*pairs, strict=True))
    share, drop = fraction(before), paired_drop(before, after)
    assert 0.0 <= share.low <= share.value <= share.high <= 1.0
    assert drop.low <= drop.value <= drop.high
    assert drop.value == pytest.approx(before.mean() - after.mean()) and not math.isnan(drop.low)


def scores(values: np.ndarray) -> Run:
    """The image's first pixel is its number; the model gives row `values[number]`."""
    return lambda image: np.asarray(values[int(image[0, 0, 0, 0])], np.float32)[None]


SCORES = np.random.default_rng(0).standard_normal((60, 1))
FREE: dict[str, Any] = {"min_agreement": 0.0, "max_top1_drop": 1.0}


def test_one_score_agrees_where_it_is_near_not_on_its_only_class() -> None:
    """The largest of one score is always the first: a build that gives noise would agree on 100 %."""
    noise = np.random.default_rng(1).standard_normal((60, 1))
    good = check_accuracy(scores(SCORES + 0.1), scores(SCORES), images(60), **FREE)
    assert good.agreement.value == 1.0 and good.decides == "score"
    assert good.summary.startswith("its one score is within half a deviation of float's on 100.0%")
    assert check_accuracy(scores(noise), scores(SCORES), images(60), **FREE).agreement.value < 0.5
    with pytest.raises(AccuracyError, match="agreement"):
        check_accuracy(scores(noise), scores(SCORES), images(60), min_agreement=0.95, max_top1_drop=1.0)
    # Images that are all alike: what the weights say takes the place of what the images show.
    alike: dict[str, Any] = {"min_agreement": 0.95, "max_top1_drop": 1.0, "least_deviation": 1.0}
    assert check_accuracy(scores(SCORES * 0 + 0.1), scores(SCORES * 0), images(60), **alike).agreement.value == 1.0


def test_features_agree_where_they_are_near_not_on_their_largest_value() -> None:
    """Features often have one value that dwarfs the others on every image."""
    rng = np.random.default_rng(2)
    values, noise = rng.standard_normal((40, 16)), rng.standard_normal((40, 16))
    values[:, 3] += 50
    noise[:, 3] += 50
    good = check_accuracy(scores(values + 0.1), scores(values), images(40), features=True, **FREE)
    assert good.agreement.value == 1.0 and good.decides == "features"
    assert good.summary.startswith("its features are within half a deviation of float's on 100.0%")
    assert check_accuracy(scores(noise), scores(values), images(40), features=True, **FREE).agreement.value < 0.1


@pytest.mark.parametrize(("values", "features"), [(SCORES, False), (np.eye(60), True)])
def test_labels_for_a_model_without_classes_are_refused(values: np.ndarray, features: bool) -> None:
    with pytest.raises(AccuracyError, match="has no top-1: give no labels"):
        check_accuracy(scores(values), scores(values), images(4), TRUTH[:4], features=features, **FREE)
