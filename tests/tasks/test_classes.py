from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit.errors import ImagesError
from edgevit.program.program import load_program, save_program
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

NAMED = tiny_program(labels=("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"))


@pytest.mark.parametrize("text", ["3, 0,7", "dog,ant,hen", "Dog, 0 , HEN", "3\n0\n7\n"])
def test_numbers_and_names_from_the_line_or_a_file(text: str, tmp_path: Path) -> None:
    if "\n" in text:
        (tmp_path / "kept.txt").write_text(text)
        text = str(tmp_path / "kept.txt")
    assert read_classes(text, NAMED.spec) == (3, 0, 7)


def test_logits_are_those_of_the_classes_that_stay(tmp_path: Path) -> None:
    images = normalise(NAMED.spec, tiny_images(NAMED.spec, 3))
    small = keep_classes(NAMED, (3, 0, 7))
    with torch.no_grad():
        torch.testing.assert_close(Vit(small)(images), Vit(NAMED)(images)[:, [3, 0, 7]])
    assert small.spec.labels == ("dog", "ant", "hen") and small.spec.class_numbers == (3, 0, 7)
    save_program(small, tmp_path / "small")
    np.testing.assert_array_equal(load_program(tmp_path / "small").weights["head.bias"], small.weights["head.bias"])


def test_again_and_without_names_the_first_numbers_stay() -> None:
    twice = keep_classes(keep_classes(tiny_program(), (9, 4, 2)), (2, 9))
    assert twice.spec.class_numbers == (2, 9) and twice.spec.labels == ("2", "9")
    with pytest.raises(ImagesError, match="got '4'; allowed: class numbers of tiny, 2 to 9"):
        read_classes("9,4", twice.spec)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3,10", "got '10'; allowed: class numbers of tiny, 0 to 9, or its classes' names"),
        ("dog,unicorn", "got 'unicorn'"),
        ("3,dog", r"got \[3\] twice"),
        ("-1", "got '-1'"),
        (" , ", "got none"),
    ],
)
def test_what_is_no_class_is_refused(text: str, said: str) -> None:
    with pytest.raises(ImagesError, match=said):
        read_classes(text, NAMED.spec)


def test_a_model_without_a_classifier_or_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    bare = replace(NAMED.spec, head=replace(NAMED.spec.head, linear=False))
    with pytest.raises(ImagesError, match="ends without a classifier"):
        read_classes("1", bare)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImagesError, match="cannot be read as classes"):
        read_classes(str(tmp_path / "bytes"), NAMED.spec)
