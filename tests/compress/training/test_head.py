"""A new head is fitted to what the model already sees, to the one optimum of a convex problem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.compress.gate.judge import answers
from edgevit.compress.training import head
from edgevit.compress.training.head import fit_head, is_new
from edgevit.images.labelled import LabelledSet, open_labelled, prepare_all, subset
from edgevit.program.program import Program
from edgevit.program.spec import ImageSpec
from tests.compressing import CLASSES, dense, photos


def blank(program: Program) -> Program:
    return program.with_weights({n: 0 * program.weights[n] for n in ("head.weight", "head.bias")})


@pytest.mark.parametrize("shape", [{}, {"prefix": 0}, {"prefix": 2, "head_prefix": 2}])
def test_a_fitted_head_knows_the_classes(shape: dict[str, int], tmp_path: Path) -> None:
    data = open_labelled(photos(tmp_path / "photos"))
    program = blank(dense(**shape))
    assert is_new(program) and not is_new(dense(**shape))
    fitted = fit_head(program, data, 0)
    changed = {n for n, a in fitted.weights.items() if not np.array_equal(a, program.weights[n])}
    assert changed == {"head.weight", "head.bias"}
    images, labels = prepare_all(open_labelled(photos(tmp_path / "more", seed=1)), program.spec.image)
    assert answers(fitted, images).top1(labels) > 0.7
    again = fit_head(program, data, 0)
    assert all(np.array_equal(again.weights[n], fitted.weights[n]) for n in changed)


def test_it_is_the_optimum_and_reads_no_more_images_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, program = open_labelled(photos(tmp_path / "photos")), blank(dense())
    whole = fit_head(program, data, 0)
    turned = fit_head(program, subset(data, np.arange(len(data))[::-1]), 0)
    np.testing.assert_allclose(turned.weights["head.weight"], whole.weights["head.weight"], atol=2e-3)
    monkeypatch.setattr(head, "IMAGES", 1)
    monkeypatch.setattr(head, "CHUNK", 5)
    asked: list[int] = []

    def read(data: LabelledSet, image: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(data))
        return prepare_all(data, image)

    monkeypatch.setattr(head, "evaluation", read)
    fit_head(program, data, 0)
    assert sum(asked) == head.PER_CLASS * CLASSES and max(asked) == 5


def test_images_without_labels_teach_no_head(tmp_path: Path) -> None:
    data, program = open_labelled(photos(tmp_path / "photos")), blank(dense())
    assert fit_head(program, replace(data, labels=None), 0) is program
    assert data.labels is not None
    some = replace(data, labels=np.where(np.arange(len(data)) % 2, data.labels, -1))
    np.testing.assert_allclose(
        fit_head(program, some, 0).weights["head.weight"],
        fit_head(program, subset(data, np.arange(1, len(data), 2)), 0).weights["head.weight"],
        atol=2e-3,
    )
