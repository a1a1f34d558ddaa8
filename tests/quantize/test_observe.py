from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.backends.reference import taps
from edgevit.errors import ImagesError, ProgramError
from edgevit.onnx_form.assemble import assemble
from edgevit.quantize.observe import (
    BINS,
    GATHERED_ROWS,
    HISTOGRAM_STRIDE,
    MAX_SAMPLED_ROWS,
    Ranges,
    Run,
    TensorRange,
    observe,
)
from edgevit.quantize.ranges import kept_range
from edgevit.schema.quant_plan import linear_names
from tests.quantize.watched import watched
from tests.tiny import tiny_images, tiny_program, tiny_spec

SPEC = tiny_spec(depth=1)
GATINGS: tuple[Literal["open", "both"], ...] = ("open", "both")
IMAGE = np.zeros((1, 32, 32, 3), dtype=np.uint8)


def replay(batches: list[np.ndarray], name: str = "b00_mhsa.qkv", gates: list[list[int]] | None = None) -> Ranges:
    """Observe prepared arrays as if a model had given them, one per image."""
    position = iter(range(len(batches)))

    def run(_: np.ndarray) -> Mapping[str, np.ndarray]:
        i = next(position)
        opened = gates[i] if gates else [1] * len(SPEC.branches)
        return {f"tap:{name}": batches[i], "gates": np.array(opened, dtype=np.uint8), "logits": np.zeros((1, 10))}

    return observe(SPEC, [run], [IMAGE] * len(batches), threads=1)


def test_every_linear_but_the_patch_stem_is_seen_in_graph_order() -> None:
    program = tiny_program()
    ranges = watched(program)
    assert tuple(t.name for t in ranges.tensors) == linear_names(program.spec)[1:]
    assert ranges.images == 12 and ranges.tensor("stem") is None


def test_column_extremes_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(3)
    batches = [rng.standard_normal((17, 8)).astype(np.float32) * 10**i for i in range(4)]
    seen = replay(batches).tensors[0]
    everything = np.concatenate(batches)
    np.testing.assert_array_equal(seen.column_min, everything.min(axis=0))
    np.testing.assert_array_equal(seen.column_max, everything.max(axis=0))
    np.testing.assert_array_equal(seen.column_abs_max, np.abs(everything).max(axis=0))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.integers(0, 2**16))
def test_histogram_equals_one_made_at_once_however_the_range_grows(scales: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # At most 4 rows per image, so that every row is counted.
    batches = [(rng.standard_normal((4, 5)) * scale).astype(np.float32) for scale in scales]
    seen = replay(batches).tensors[0]
    values = np.concatenate(batches).astype(np.float64)
    assert seen.counts is not None
    assert np.abs(values).max() <= seen.limit and seen.counts.sum() == values.size
    expected = np.histogram(values, bins=BINS, range=(-seen.limit, seen.limit))[0]
    # Growing never moves a value over a border; float32 arithmetic may, by one bin.
    moved = np.abs(np.cumsum(seen.counts - expected))
    assert moved.max() <= 2


def test_closed_branch_is_not_counted() -> None:
    open_batch, closed_batch = np.ones((5, 8), np.float32), np.full((5, 8), 99, np.float32)
    ranges = replay([open_batch, closed_batch], gates=[[1, 1], [0, 1]])
    assert ranges.tensors[0].column_max.max() == 1
    assert not replay([closed_batch], gates=[[0, 1]]).tensors


def test_all_runs_are_counted() -> None:
    def run_of(value: float) -> Run:
        taps: dict[str, np.ndarray] = {"tap:head": np.full((1, 4), value, np.float32), "gates": np.ones(2, np.uint8)}
        return lambda _: taps

    seen = observe(SPEC, [run_of(-2), run_of(3)], [IMAGE]).tensors[0]
    assert (seen.column_min.min(), seen.column_max.max()) == (-2, 3)


def test_sample_is_bounded_holds_the_first_row_and_repeats() -> None:
    batches = [np.full((50, 4), i, np.float32) for i in range(300)]
    for batch in batches:
        batch[0] += 0.5
    first, second = replay(batches).tensors[0], replay(batches).tensors[0]
    assert len(first.sample) == MAX_SAMPLED_ROWS
    assert (first.sample[:, 0] % 1 == 0.5).sum() >= 100
    np.testing.assert_array_equal(first.sample, second.sample)
    np.testing.assert_array_equal(first.counts, second.counts)


@pytest.mark.parametrize("images", [1, 5, 40])
def test_moments_are_those_of_every_counted_row_however_they_were_gathered(images: int) -> None:
    rng = np.random.default_rng(images)
    batches = [rng.standard_normal((50, 6)).astype(np.float32) for _ in range(images)]
    seen = replay(batches).tensors[0]
    counted = np.concatenate([batch[i % HISTOGRAM_STRIDE :: HISTOGRAM_STRIDE] for i, batch in enumerate(batches)])
    assert seen.rows == len(counted) and (images * 12 > GATHERED_ROWS) == (images == 40)
    np.testing.assert_allclose(seen.moments, counted.T @ counted / len(counted), rtol=1e-4, atol=1e-5)


def keep(logits: list[np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    logits.append(outputs["logits"])


def test_what_is_kept_does_not_depend_on_the_number_of_threads() -> None:
    program = tiny_program(gated=True)
    images = [image[None] for image in tiny_images(program.spec, 40)]
    kept = []
    for threads in (1, 2, 4):
        logits: list[np.ndarray] = []
        runs = [taps(assemble(program, gating=gating, taps=True)) for gating in GATINGS]
        ranges = observe(program.spec, runs, images, told=partial(keep, logits), threads=threads)
        kept.append((np.concatenate(logits), ranges))
    expected = np.concatenate([taps(assemble(program, gating="open"))(image)["logits"] for image in images])
    for logits_of, ranges in kept:
        np.testing.assert_array_equal(logits_of, kept[0][0])
        np.testing.assert_allclose(logits_of, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(ranges.tensors, kept[0][1].tensors, strict=True):
            for field in fields(TensorRange):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_nothing_is_counted_that_nobody_asks_for() -> None:
    program = tiny_program(depth=1)
    runs = [taps(assemble(program, taps=True))]
    seen = observe(program.spec, runs, [tiny_images(program.spec, 1)], histogram=False).tensors[0]
    assert seen.counts is None
    with pytest.raises(ValueError, match="needs a histogram"):
        kept_range(seen, "percentile", program.weights[f"{seen.name}.weight"])


def test_constant_zero_is_no_fault() -> None:
    seen = replay([np.zeros((3, 4), np.float32)]).tensors[0]
    assert seen.limit == 0 and seen.column_abs_max.max() == 0


def test_no_image_is_refused() -> None:
    with pytest.raises(ImagesError, match="no calibration image"):
        observe(SPEC, [lambda _: {}], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    batch = np.ones((5, 4), np.float32)
    batch[3, 2] = bad
    with pytest.raises(ProgramError, match=r"b00_mhsa\.qkv is not finite on calibration image 2"):
        replay([np.ones((5, 4), np.float32), batch])


def test_image_is_passed_on_unchanged() -> None:
    got = []

    def run(image: np.ndarray) -> Mapping[str, np.ndarray]:
        got.append(image)
        return {"tap:head": np.ones((1, 4), np.float32), "gates": np.ones(2, np.uint8)}

    images = [image[None] for image in tiny_images(SPEC, 3)]
    observe(SPEC, [run], images, threads=1)
    assert all(a is b for a, b in zip(got, images, strict=True))
