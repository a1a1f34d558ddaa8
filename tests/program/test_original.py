"""What a Program keeps of its original: through compression, through classes, through its folder on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import ProgramError
from edgevit.program.macs import total_macs
from edgevit.program.original import (
    as_original,
    evaluate,
    kept_answers,
    original_of,
    told,
    uncompressed,
    weights_digest,
    when_compressed,
    with_original,
    without_answers,
)
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.spec import OriginalEvaluation, OriginalSpec
from edgevit.tasks.classes import keep_classes
from edgevit.tasks.counterpart import fitting
from tests.tiny import tiny_images, tiny_program

DENSE = tiny_program()
IMAGES, IMAGE = tiny_images(DENSE.spec, 6), DENSE.spec.image
RNG = np.random.default_rng(0)
BEFORE = RNG.standard_normal((6, 10)).astype(np.float32)
AFTER = BEFORE.copy()
AFTER[:2] = -AFTER[:2]
LABELS = BEFORE.argmax(axis=1)
LABELS[5] = -1


def small(*evaluations: OriginalEvaluation) -> Program:
    gated = tiny_program(gated=True, skip=True, removed=("b01_ffn",))
    return with_original(gated, original_of(DENSE, "pruned", "gated"), *evaluations)


def answered() -> Program:
    return small(evaluate("photos", IMAGES, IMAGE, BEFORE, AFTER, LABELS))


def known(program: Program) -> OriginalSpec:
    assert program.spec.original is not None
    return program.spec.original


def test_a_dense_model_is_its_own_original() -> None:
    original = original_of(DENSE, "pruned")
    size = sum(array.size for array in DENSE.weights.values())
    assert (original.weights_sha256, original.macs) == (weights_digest(DENSE), total_macs(DENSE.spec))
    assert (original.parameters, original.float_bytes, original.steps) == (size, 4 * size, ("pruned",))
    assert not DENSE.spec.compressed and not original.new_head


def test_the_original_stays_the_first_model_however_often_it_is_compressed() -> None:
    again = original_of(answered(), "gated once more")
    assert (again.name, again.weights_sha256) == (DENSE.spec.name, weights_digest(DENSE))
    assert again.steps == ("pruned", "gated", "gated once more")
    (said,) = again.evaluations
    assert said.answers and said.original_top1 == 1.0 and said.agreement is None and said.top1 is None


def test_what_an_older_edgevit_compressed_has_an_unknown_original() -> None:
    gated = tiny_program(gated=True, skip=True, removed=("b01_ffn",))
    assert gated.spec.compressed and gated.spec.original is None
    original = original_of(gated, "gated again")
    assert (original.weights_sha256, original.macs) == ("", total_macs(DENSE.spec))
    assert "this Program does not keep it; --original MODEL" in told(None, 10)


def test_figures_are_of_the_images_that_have_labels() -> None:
    (said,) = known(answered()).evaluations
    assert (said.images, said.classes, said.source) == (6, 10, "photos")
    assert [said.original_top1, said.top1, said.agreement] == pytest.approx([1.0, 3 / 5, 4 / 6])


def test_answers_are_known_again_on_the_same_pixels_only() -> None:
    program = answered()
    np.testing.assert_array_equal(kept_answers(program.spec, IMAGES), BEFORE.argmax(axis=1))
    assert kept_answers(program.spec, IMAGES[:5]) is None
    assert kept_answers(program.spec, IMAGES[::-1]) is None
    scaled = replace(program.spec, image=replace(IMAGE, mean=(0.5, 0.5, 0.5)))
    assert kept_answers(scaled, IMAGES) is None
    assert kept_answers(DENSE.spec, IMAGES) is None


def test_the_hash_is_of_the_originals_logits() -> None:
    first, second, other = (evaluate("photos", IMAGES, IMAGE, logits) for logits in (BEFORE, BEFORE.copy(), AFTER))
    assert first.logits_sha256 == second.logits_sha256 != other.logits_sha256


def test_a_later_word_on_the_same_images_replaces_the_earlier() -> None:
    program = answered()
    again = with_original(program, known(program), evaluate("renamed", IMAGES, IMAGE, BEFORE, BEFORE))
    assert [(e.source, e.agreement) for e in known(again).evaluations] == [("renamed", 1.0)]


@pytest.mark.parametrize("numbers", [(3, 7), tuple(reversed(range(10)))])
def test_fewer_classes_keep_the_figures_and_drop_the_numbers(numbers: tuple[int, ...]) -> None:
    program = keep_classes(answered(), numbers)
    original, smaller = known(program), keep_classes(DENSE, numbers)
    assert (original.macs, original.parameters) == (total_macs(smaller.spec), as_original(smaller).parameters)
    assert kept_answers(program.spec, IMAGES) is None
    among = "" if len(numbers) == 10 else " with all 10 classes"
    said = f"top-1 100.0 -> 60.0 %, agreement 66.7 % on 6 images of photos{among}"
    assert told(original, len(numbers)) == (
        f"not known on these images; when it was compressed: {said}; --original MODEL compares here"
    )


def test_a_new_head_is_not_compared_with() -> None:
    zero = {name: np.zeros_like(DENSE.weights[name]) for name in ("head.weight", "head.bias")}
    original = original_of(DENSE.with_weights(zero), "trained")
    assert original.new_head and told(original, 10).startswith("not comparable")


def test_labelled_images_are_told_first() -> None:
    few = evaluate("labelled", IMAGES[:3], IMAGE, BEFORE[:3], AFTER[:3], LABELS[:3])
    many = evaluate("photos", IMAGES, IMAGE, BEFORE, AFTER)
    original = known(small(many, few))
    assert "on 3 images of labelled" in when_compressed(original, 10)
    assert "agreement 66.7 % on 6 images of photos" in when_compressed(known(small(many)), 10)
    assert when_compressed(known(small(many)), 10, labelled=True) == ""
    assert when_compressed(None, 10) == ""


def test_it_is_kept_on_disk_and_old_folders_are_read(tmp_path: Path) -> None:
    save_program(answered(), tmp_path / "new")
    assert load_program(tmp_path / "new").spec == answered().spec
    path = tmp_path / "new" / "program.json"
    document = json.loads(path.read_text())
    del document["spec"]["original"]
    path.write_text(json.dumps(document))
    assert load_program(tmp_path / "new").spec.original is None


def test_a_manifest_holds_the_figures_without_the_answers() -> None:
    short = without_answers(known(answered()))
    assert short is not None
    (said,) = short.evaluations
    assert said.answers == "" and said.agreement == pytest.approx(4 / 6)
    assert without_answers(None) is None


def test_uncompressed_is_the_shape_of_the_dense_model() -> None:
    assert total_macs(uncompressed(answered().spec)) == total_macs(DENSE.spec)


def test_a_counterpart_sees_the_programs_pixels_and_answers_in_its_numbers() -> None:
    image = replace(DENSE.spec.image, crop_pct=1.0, mean=(0.5, 0.5, 0.5))
    program = keep_classes(answered(), (7, 2))
    program = program.with_weights({}, replace(program.spec, image=image))
    found = fitting(DENSE, program)
    assert found.spec.class_numbers == (7, 2)
    assert (found.spec.image.crop_pct, found.spec.image.mean) == (1.0, DENSE.spec.image.mean)
    np.testing.assert_array_equal(found.weights["head.weight"], DENSE.weights["head.weight"][:, [7, 2]])


@pytest.mark.parametrize(
    ("original", "said"),
    [
        (tiny_program(image=(16, 16)), "takes images of 16 x 16 pixels, tiny of 32 x 32"),
        (tiny_program(classes=4), r"has 4 classes, tiny has 10, among them \[4, 5, 6, 7, 8\] that it lacks"),
    ],
)
def test_a_model_that_cannot_be_compared_is_refused(original: Program, said: str) -> None:
    with pytest.raises(ProgramError, match=said):
        fitting(original, answered())
