"""Builds that merge other pairs than their reference: near ties pass, what a merge kernel does wrong does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgevit.backends import Answer, Merged
from edgevit.backends.given_pairs import pair_outputs, telling_pairs, told_pairs
from edgevit.backends.onnxruntime import OnnxRuntimeRunner, options, session
from edgevit.backends.reference import reference_with_margins
from edgevit.errors import ParityError
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.claims import ParityResult
from edgevit.verify.merges import under_same_pairs
from edgevit.verify.pairs import Choices, Pairs, compare_pairs
from edgevit.verify.parity import FLOAT, INT8, QUANTIZED, check_parity
from tests.tiny import tiny_images, tiny_program

FIXED = tiny_program(depth=4, image=(64, 64), tokens="1:20,3:9")
FOLLOWS = tiny_program(depth=4, image=(64, 64), tokens="1:0-27@0.85,2:3-17@0.8,3:1")
ALL = tiny_program(depth=4, image=(64, 64), tokens="1:32,2:16")  # every token of the first set
GATED = tiny_program(depth=4, image=(64, 64), tokens="1:2-32@0.85,3:0-13@0.85", gated=True, skip=True)
IMAGES = tiny_images(FIXED.spec, 4)

OTHERS = r"give away a cosine of up to|pairs of tokens that were merged are not|tokens left are"


class Build:
    """A model as ONNX Runtime runs it: `run` and `answer` of a runner, and `merged` as a desk has it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.runner = OnnxRuntimeRunner(session(model.SerializeToString(), options()))
        self._names = pair_outputs(model)
        self._session: Any = session(telling_pairs(model).SerializeToString(), options())

    def merged(self, image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        names = [output.name for output in self._session.get_outputs()]
        inputs = {"image": image, "effort": np.array(effort, np.float32)}
        taken = {value.name for value in [*self._session.get_inputs(), *self._session.get_overridable_initializers()]}
        values = self._session.run(names, {name: value for name, value in inputs.items() if name in taken})
        told = dict(zip(names, values, strict=True))
        return self.runner.answer(image, effort), told_pairs(self._names, told)


def check(program: Program, build: Build, merged: Merged | None, tolerance: Any = QUANTIZED) -> ParityResult:
    reference = reference_with_margins(assemble(program))
    return check_parity(reference, build.runner, IMAGES, tolerance, patches=program.spec.patches, merged=merged)


@pytest.mark.parametrize("program", [FIXED, ALL, FOLLOWS, GATED], ids=["fixed", "all", "follows", "gated"])
def test_a_right_build_merges_what_its_reference_does(program: Program) -> None:
    build = Build(assemble(program))
    result = check(program, build, build.merged, FLOAT)
    assert all(p.compared == len(IMAGES) and p.other_pairs == 0 for p in result.paths)
    assert sum(p.pairs for p in result.paths) >= len(IMAGES)
    assert "under the same pairs of tokens (0 of " in result.summary


@pytest.mark.parametrize("program", [FIXED, FOLLOWS, GATED], ids=["fixed", "follows", "gated"])
def test_a_reference_merges_the_pairs_that_it_is_given(program: Program) -> None:
    """Its own: nothing changes. Others: what a build that chooses so computes."""
    reference, build = reference_with_margins(assemble(program)), Build(assemble(program))
    _, own = build.merged(IMAGES[:1], 0.0)
    plain, same = reference(IMAGES[:1], 0.0), reference(IMAGES[:1], 0.0, own)
    np.testing.assert_allclose(same[0], plain[0], atol=1e-5)
    assert [p.left for p in same[3]] == [p.left for p in plain[3]]
    other = Build(lowest_first(assemble(program)))
    answer, pairs = other.merged(IMAGES[:1], 0.0)
    given = reference(IMAGES[:1], 0.0, pairs)
    assert np.abs(answer.logits - plain[0]).max() > 5e-3
    np.testing.assert_allclose(given[0], answer.logits, atol=1e-4)


def lowest_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The least alike of the first set are merged, not the most; partners are right."""
    for node in model.graph.node:
        if node.output[0].endswith("/ordered"):
            node.attribute.extend([helper.make_attribute("largest", 0)])
    return model


def worst_partner(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.output[0].endswith("/into"):
            node.op_type = "ArgMin"
    return model


def unlike_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rows are compared by their plain products: longer ones win."""
    nodes = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.name.startswith("merge.") and node.output[0].endswith("/scores"):
            node.input[:] = [nodes[name].input[0] for name in node.input]
    return model


def unweighed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Right pairs, but their sums stand where their means should."""
    for node in model.graph.node:
        if node.output[0].endswith("/means"):
            node.op_type = "Add"
    return model


def uncounted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Right pairs, but attention reads each token as one patch twice over."""
    for node in model.graph.node:
        if node.output[0].endswith("/log"):
            node.op_type = "Neg"
    return model


def test_a_number_that_other_rows_allow_is_judged_by_the_reference_with_those_rows() -> None:
    """A first point that merges one pair more or less brings other rows to the second, which leave other tiles."""
    plan = tiny_program(depth=4, image=(64, 64), tokens="1:0-27@0.85,2:0-17@0.5")
    first, second = plan.spec.merges
    spec = replace(plan.spec, merges=(replace(first, threshold=1.5), second))
    build, lenient = Build(assemble(plan.with_weights({}, spec))), replace(FLOAT, token_margin=2.0, max_moved=1.0)
    counts = {len(each.merged) for image in IMAGES for each in build.merged(image[None], 0.0)[1]}
    assert 0 in counts and len(counts) > 1
    assert sum(path.moved for path in check(plan, build, build.merged, lenient).paths)

    def fewer(image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        answer, (one, two) = build.merged(image, effort)
        return answer, (one, replace(two, merged=two.merged[:-1]))

    with pytest.raises(ParityError, match="tokens left are .* from the threshold"):
        check(plan, build, fewer, lenient)


@pytest.mark.parametrize("tolerance", [QUANTIZED, INT8], ids=["lowered", "float"])
@pytest.mark.parametrize("program", [FIXED, FOLLOWS], ids=["fixed", "follows"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lowest_first, rf"the build merges 8 of 32 tokens|{OTHERS}"),
        (worst_partner, r"give away a cosine of up to"),
        (unlike_norm, OTHERS),
    ],
)
def test_pairs_that_are_wrong_are_caught(
    damage: Callable[[onnx.ModelProto], onnx.ModelProto], message: str, program: Program, tolerance: Any
) -> None:
    """However far apart the logits of a small model may be: the choices themselves are judged."""
    build = Build(damage(assemble(program)))
    with pytest.raises(ParityError, match=message):
        check(program, build, build.merged, replace(tolerance, min_cosine=-1.0, max_error=1e9))


@pytest.mark.parametrize("program", [FIXED, FOLLOWS], ids=["fixed", "follows"])
@pytest.mark.parametrize("damage", [unweighed, uncounted])
def test_right_pairs_that_count_wrong_are_caught(
    damage: Callable[[onnx.ModelProto], onnx.ModelProto], program: Program
) -> None:
    """As many of them as one likes may be others: what they become is compared."""
    build = Build(damage(assemble(program)))
    lenient = replace(FLOAT, token_margin=9.0, max_moved=1.0, pair_margin=9.0, max_other_pairs=1.0)
    with pytest.raises(ParityError, match="logits differ"):
        check(program, build, build.merged, lenient)


def near_ties(program: Program) -> Program:
    """The same with weights that differ by rounding, which moves some choices."""
    rng = np.random.default_rng(0)
    changed = {
        name: array * (1 + 0.01 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in program.weights.items()
        if array.ndim == 2
    }
    return program.with_weights(changed, program.spec)


@pytest.mark.parametrize("program", [FIXED, FOLLOWS], ids=["fixed", "follows"])
def test_pairs_that_rounding_decides_may_differ(program: Program) -> None:
    build = Build(assemble(near_ties(program)))
    result = check(program, build, build.merged)
    other, pairs = sum(p.other_pairs for p in result.paths), sum(p.pairs for p in result.paths)
    assert 0 < other <= QUANTIZED.max_other_pairs * pairs
    assert 0 < max(p.pair_loss for p in result.paths) <= QUANTIZED.pair_margin
    assert all(p.compared == len(IMAGES) for p in result.paths)
    for few in (replace(QUANTIZED, pair_margin=1e-9), replace(QUANTIZED, max_other_pairs=0.0)):
        with pytest.raises(ParityError, match="give away a cosine|are not those of the reference"):
            check(program, build, build.merged, few)


def test_under_the_same_pairs_both_are_nearer_than_where_each_chooses() -> None:
    build, lenient = Build(assemble(near_ties(FIXED))), replace(QUANTIZED, min_cosine=-1.0, max_error=1e9)
    same, alone = check(FIXED, build, build.merged, lenient), check(FIXED, build, None, lenient)
    assert max(p.error for p in same.paths) < max(p.error for p in alone.paths)


def test_pairs_of_another_answer_do_not_count() -> None:
    """What tells the pairs has to be the build: one that answers otherwise is not believed."""
    build, other = Build(assemble(near_ties(FIXED))), Build(assemble(FIXED))
    result = check(FIXED, build, other.merged, replace(QUANTIZED, min_cosine=-1.0, max_error=1e9))
    assert all(p.pairs == 0 for p in result.paths) and "pairs of tokens" not in result.summary


def test_pairs_that_are_told_wrong_are_caught() -> None:
    """A build that merges others than it says: under what it says, the reference computes something else."""
    build = Build(lowest_first(assemble(FIXED)))
    right = Build(assemble(FIXED))

    def lying(image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        return build.runner.answer(image, effort), right.merged(image, effort)[1]

    with pytest.raises(ParityError, match="logits differ"):
        check(FIXED, build, lying, FLOAT)


def test_what_the_reference_says_under_the_same_pairs() -> None:
    """Of a build within the tolerance about what that says; of one that merges what it should not, nothing."""
    reference, build, wrong = (
        reference_with_margins(assemble(FOLLOWS)),
        Build(assemble(near_ties(FOLLOWS))),
        Build(worst_partner(assemble(FOLLOWS))),
    )
    for image in IMAGES:
        alone, got = reference(image[None], 0.0)[0], build.runner.answer(image[None], 0.0).logits
        same = under_same_pairs(reference, build.merged, image[None], 0.0, INT8)
        assert same is not None and np.abs(same - got).max() <= np.abs(alone - got).max() + 1e-6
        assert under_same_pairs(reference, wrong.merged, image[None], 0.0, INT8) is None


SCORES = np.array([[0.9, 0.2], [0.5, 0.5], [0.1, 0.8], [0.7, 0.6]])


@pytest.mark.parametrize(
    ("into", "merged", "expected"),
    [
        ([0, 0, 1, 0], [0, 2], Choices(pairs=2)),
        ([0, 1, 1, 1], [0, 2], Choices(pairs=2)),  # whom the others would have joined does not matter
        ([0, 0, 1, 0], [0, 3], Choices(pairs=2, other=1, loss=0.1)),
        ([0, 0, 1, 1], [0, 2, 3], Choices(pairs=3, other=1, loss=0.1)),
        ([1, 0, 1, 0], [0, 2], Choices(pairs=2, other=1, loss=0.7)),
        ([0, 1, 1, 0], [0, 1, 2, 3], Choices(pairs=4)),  # an equal partner
        ([0, 0, 1, 0], [], Choices()),
    ],
)
def test_a_choice_costs_what_it_gives_away(into: list[int], merged: list[int], expected: Choices) -> None:
    pairs = Pairs(into=np.array(into), merged=np.array(merged, np.int64))
    found = compare_pairs(SCORES, pairs)
    assert (found.pairs, found.other) == (expected.pairs, expected.other)
    assert found.loss == pytest.approx(expected.loss)


@pytest.mark.parametrize(
    ("into", "merged", "margin", "far"),
    [
        ([0, 0, 1, 0], [0, 3], 0.05, 1),  # 0.7 in the place of 0.8
        ([0, 0, 1, 0], [0, 3], 0.15, 0),
        ([1, 0, 1, 0], [0, 2], 0.5, 1),  # the worse partner, by 0.7
        ([0, 0, 1, 0], [1, 3], 0.15, 1),  # 0.5 and 0.7 in the places of 0.9 and 0.8, best and worst first: 0.4 and 0.1
        ([0, 0, 1, 0], [1, 3], 0.05, 2),
        ([1, 1, 0, 1], [0, 1, 2, 3], 0.05, 3),
        ([0, 0, 1, 0], [0, 3], np.inf, 0),
    ],
)
def test_pairs_farther_than_a_margin_are_counted(into: list[int], merged: list[int], margin: float, far: int) -> None:
    pairs = Pairs(into=np.array(into), merged=np.array(merged, np.int64))
    assert compare_pairs(SCORES, pairs, margin).far == far


def test_one_pair_in_a_hundred_may_be_far() -> None:
    """Where int8 moves one token far the build is right; a point that chooses wrong moves more of them."""
    build = Build(assemble(near_ties(FIXED)))
    kept = replace(QUANTIZED, max_other_pairs=1.0, pair_margin=0.0)
    far = sum(p.far_pairs for p in check(FIXED, build, build.merged, replace(kept, max_far_pairs=1.0)).paths)
    pairs = len(IMAGES) * (20 + 9)
    assert 0 < far < pairs
    check(FIXED, build, build.merged, replace(kept, max_far_pairs=far / pairs + 1e-9))
    with pytest.raises(ParityError, match=rf"{far} of {pairs} pairs .* give away a cosine of up to .*path 'real'"):
        check(FIXED, build, build.merged, replace(kept, max_far_pairs=(far - 1) / pairs))
    assert FLOAT.max_far_pairs == 0 and QUANTIZED.max_far_pairs == INT8.max_far_pairs == 0.01


def test_among_equals_the_lower_index_goes_first() -> None:
    equal = np.full((3, 2), 0.5)
    right, wrong = (Pairs(into=np.array([0, 0, 0]), merged=np.array(merged)) for merged in ([0, 1], [1, 2]))
    assert compare_pairs(equal, right).other == 0
    assert compare_pairs(equal, wrong) == Choices(pairs=2, other=1, loss=0.0)


@pytest.mark.parametrize(
    ("into", "merged"),
    [([0, 0, 0], [0]), ([0, 0, 2, 0], [0]), ([0, 0, -1, 0], [0]), ([0, 0, 1, 0], [4]), ([0, 0, 1, 0], [1, 1])],
)
def test_what_are_no_pairs_is_refused(into: Sequence[int], merged: Sequence[int]) -> None:
    with pytest.raises(ParityError, match="pairs that are none of 4 tokens with 2 others"):
        compare_pairs(SCORES, Pairs(into=np.array(into), merged=np.array(merged)))
