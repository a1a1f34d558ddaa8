from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit.compress.training.teacher import Teacher
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program()
IMAGES = normalise(PROGRAM.spec, tiny_images(PROGRAM.spec, 6))


class Counting(Vit):
    calls = 0

    def forward(self, *arguments: object, **options: object) -> torch.Tensor:
        self.calls += 1
        return super().forward(*arguments, **options)  # type: ignore[arg-type]


def test_outputs_are_the_models_and_computed_once(tmp_path: Path) -> None:
    model = Counting(PROGRAM)
    expected = model(IMAGES).detach()
    teacher = Teacher(model, name="a", folder=tmp_path / "kept")
    for _ in range(3):
        torch.testing.assert_close(teacher(IMAGES).logits, expected)
    assert model.calls == 2
    torch.testing.assert_close(Teacher(model, name="a", folder=tmp_path / "kept")(IMAGES).logits, expected)
    assert model.calls == 2


def test_other_pixels_and_other_models_are_not_confused(tmp_path: Path) -> None:
    first = Teacher(Vit(PROGRAM), name="a", folder=tmp_path)
    other = Vit(tiny_program(seed=1))
    assert not torch.equal(first(IMAGES).logits, first(IMAGES.flip(0)).logits)
    torch.testing.assert_close(Teacher(other, name="b", folder=tmp_path)(IMAGES).logits, other(IMAGES).detach())


def whole_but_other() -> bytes:
    """An array of both files' kinds in neither's shape."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1, 2), np.float16))
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array", whole_but_other()])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    model = Counting(PROGRAM)
    teacher = Teacher(model, name="a", folder=tmp_path, tokens=True)
    expected = teacher(IMAGES)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    for calls, path in enumerate(kept, start=2):
        path.write_bytes(damage)
        torch.testing.assert_close(teacher(IMAGES), expected)
        torch.testing.assert_close(teacher(IMAGES), expected)
        assert model.calls == calls


def test_streams_are_kept_beside_logits_that_were_kept_without(tmp_path: Path) -> None:
    expected = Teacher(Vit(PROGRAM), tokens=True)(IMAGES)
    plain = Teacher(Vit(PROGRAM), name="a", folder=tmp_path)(IMAGES)
    assert plain.tokens is None and expected.tokens is not None
    model = Counting(PROGRAM)
    for _ in range(2):
        found = Teacher(model, name="a", folder=tmp_path, tokens=True)(IMAGES)
        torch.testing.assert_close(found, expected)
    assert model.calls == 1


def test_without_a_folder_nothing_is_kept() -> None:
    model = Counting(PROGRAM)
    teacher = Teacher(model)
    teacher(IMAGES), teacher(IMAGES)
    assert model.calls == 2 and not model.array("head.weight").requires_grad
