from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.quantize.observe import BINS, TensorRange
from edgevit.quantize.ranges import CLIPS, Activations, fake_quantize, kept_range, output_error, quantizer

finite = st.floats(-1e4, 1e4, allow_nan=False, width=32)


def seen_of(x: np.ndarray) -> TensorRange:
    limit = float(2.0 ** np.ceil(np.log2(max(np.abs(x).max(), 1e-6))))
    counts = np.histogram(x, bins=BINS, range=(-limit, limit))[0]
    x = x.astype(np.float32)
    moments = x.T @ x / np.float32(len(x))
    return TensorRange(
        name="l",
        column_min=x.min(0),
        column_max=x.max(0),
        counts=counts,
        limit=limit,
        sample=x,
        moments=moments,
        rows=len(x),
    )


def rows(seed: int = 0, n: int = 200, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


WEIGHT = np.random.default_rng(9).standard_normal((16, 6)).astype(np.float32)


@settings(deadline=None)
@given(finite, finite, st.sampled_from(["uint8", "int8"]))
def test_zero_is_exact_and_the_range_is_held_to_half_a_step(a: float, b: float, kind: Activations) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = quantizer(low, high, kind)
    assert scale > 0 and (0 <= zero <= 255 if kind == "uint8" else -128 <= zero <= 127)
    assert fake_quantize(np.zeros(1, np.float32), scale, zero, kind)[0] == 0
    x = np.linspace(low, high, 101, dtype=np.float32)
    # The zero point is rounded too: an end may be out by one more half step.
    assert np.abs(fake_quantize(x, scale, zero, kind) - x).max() <= scale * 1.01 + 1e-6


def test_quantizer_of_known_ranges() -> None:
    assert quantizer(0.0, 255.0, "uint8") == (1.0, 0)
    assert quantizer(-1.0, 254.0, "uint8") == (1.0, 1)
    assert quantizer(-64.0, 63.5, "int8") == (0.5, 0)
    # Zero is part of every range.
    assert quantizer(3.0, 510.0, "uint8") == (2.0, 0) and quantizer(-510.0, -3.0, "uint8") == (2.0, 255)
    assert quantizer(0.0, 0.0, "uint8")[0] > 0


def test_int8_is_uint8_shifted() -> None:
    x = rows()
    (s8, z8), (su, zu) = quantizer(-0.17, 3.0, "int8"), quantizer(-0.17, 3.0, "uint8")
    assert (s8, z8) == (su, zu - 128)
    np.testing.assert_array_equal(fake_quantize(x, s8, z8, "int8"), fake_quantize(x, su, zu, "uint8"))


def test_minmax_keeps_everything() -> None:
    x = rows()
    assert kept_range(seen_of(x), "minmax", WEIGHT) == (x.min(), x.max())
    assert kept_range(seen_of(np.abs(x)), "minmax", WEIGHT)[0] == 0


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_is_exact_within_a_bin(percentile: float) -> None:
    x = rows(n=2000)
    seen = seen_of(x)
    low, high = kept_range(seen, "percentile", WEIGHT, percentile=percentile)
    top, bin_width = max(-low, high), 2 * seen.limit / BINS
    assert (np.abs(x) <= top + bin_width).mean() >= percentile / 100 - 1 / x.size
    assert (np.abs(x) < top - bin_width).mean() <= percentile / 100
    assert low >= x.min() and high <= x.max()


@pytest.mark.parametrize("percentile", [49.0, 100.5])
def test_percentile_outside_its_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match=r"50\.\.100"):
        kept_range(seen_of(rows()), "percentile", WEIGHT, percentile=percentile)


def test_mse_clips_heavy_tails_and_beats_the_other_methods() -> None:
    x = rows(n=500) ** 5
    seen = seen_of(x)
    kept = {m: kept_range(seen, m, WEIGHT, percentile=99.0) for m in ("minmax", "percentile", "mse")}
    errors = {m: output_error(seen, WEIGHT, *quantizer(*r, "uint8"), "uint8") for m, r in kept.items()}
    assert errors["mse"] < 0.5 * errors["minmax"] and errors["mse"] <= errors["percentile"]
    assert kept["mse"][1] < kept["minmax"][1]


@pytest.mark.parametrize("power", [1, 2, 3, 5])
def test_mse_finds_the_best_of_all_its_clips(power: int) -> None:
    seen = seen_of(rows(seed=power, n=60) ** power)
    low, high = kept_range(seen, "minmax", WEIGHT)

    def error(low: float, high: float) -> float:
        return output_error(seen, WEIGHT, *quantizer(low, high, "uint8"), "uint8")

    limits = [clip * max(-low, high) for clip in CLIPS]
    assert error(*kept_range(seen, "mse", WEIGHT)) == min(error(max(low, -t), min(high, t)) for t in limits)


def test_mse_keeps_a_range_that_is_used_to_its_ends() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (400, 16)).astype(np.float32)
    low, high = kept_range(seen_of(x), "mse", WEIGHT)
    assert low < -0.85 and high > 0.85


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_columns_that_leave_need_no_room(method: str) -> None:
    x = rows()
    x[:, 5] *= 1000
    low, high = kept_range(seen_of(x), method, WEIGHT, without=(5,))  # type: ignore[arg-type]
    rest = np.delete(x, 5, axis=1)
    assert rest.min() <= low <= 0 <= high <= rest.max()
    assert kept_range(seen_of(x), method, WEIGHT, without=range(16)) == (0, 0)  # type: ignore[arg-type]


def test_output_error_is_what_the_definition_says() -> None:
    x = rows()
    scale, zero = quantizer(-2.0, 2.0, "uint8")
    moved = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    expected = (((moved - x) @ WEIGHT) ** 2).sum(1) / ((x @ WEIGHT) ** 2).sum(1)
    assert output_error(seen_of(x), WEIGHT, scale, zero, "uint8") == pytest.approx(expected.mean(), rel=1e-4)
    assert output_error(seen_of(x), WEIGHT, scale, zero, "uint8", without=range(16)) == 0
    assert output_error(seen_of(np.zeros((4, 16))), WEIGHT, scale, zero, "uint8") == 0


def test_few_huge_rows_do_not_speak_for_all() -> None:
    x = rows()
    x[0] *= 1000
    scale, zero = quantizer(float(x.min()), float(x.max()), "uint8")
    assert output_error(seen_of(x), WEIGHT, scale, zero, "uint8") > 0.5
