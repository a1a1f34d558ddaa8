"""Token streams: what is compared, at any image size, and that following them teaches."""

from __future__ import annotations

import pytest
import torch

from edgevit.compress.training.teacher import Teacher
from edgevit.compress.training.tokens import CELLS, Streams, places, summary
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program, tiny_spec


def test_places_are_the_quarters_and_the_last_block() -> None:
    spec = tiny_spec(depth=12)
    assert [spec.branches[i].name for i in places(spec)] == ["b03_mhsa", "b06_mhsa", "b09_mhsa", "b11_mhsa"]
    assert [tiny_spec(depth=1).branches[i].name for i in places(tiny_spec(depth=1))] == ["b00_mhsa"]


def test_rows_are_normalised_cell_means() -> None:
    spec = tiny_spec(image=(128, 64), patch=8)
    assert spec.grid == (16, 8)
    x = torch.randn(3, 1 + 16 * 8, spec.dim)
    found = summary(spec, x)
    assert found.shape == (3, 1 + CELLS * CELLS, spec.dim)
    torch.testing.assert_close(found.mean(2), torch.zeros(3, 1 + CELLS * CELLS), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(2, correction=0), torch.ones(3, 1 + CELLS * CELLS), atol=1e-3, rtol=0)
    torch.testing.assert_close(found, summary(spec, 7 * x + 3), atol=1e-3, rtol=0)
    first = x[:, 1:].reshape(3, 16, 8, spec.dim)[:, :3, :2].mean((1, 2))  # cell 0 of 7: rows 0 to 2, columns 0 to 1
    torch.testing.assert_close(found[:, 1], torch.nn.functional.layer_norm(first, (spec.dim,)), atol=1e-5, rtol=0)


def test_smaller_images_have_as_many_rows() -> None:
    spec = tiny_spec(image=(128, 64), patch=8)
    smooth = torch.linspace(-1, 1, spec.dim).expand(2, 16 * 8, spec.dim) * torch.arange(1, 3)[:, None, None]
    whole = summary(spec, torch.cat([smooth[:, :1], smooth], dim=1))
    half = summary(spec, torch.cat([smooth[:, :1], smooth[:, : 8 * 4]], dim=1))
    torch.testing.assert_close(half, whole)


def test_a_model_that_is_the_teacher_has_no_loss_and_another_has() -> None:
    program = tiny_program()
    images = normalise(program.spec, tiny_images(program.spec, 4))
    taught = Teacher(Vit(program), tokens=True)(images).tokens
    assert taught is not None
    losses = []
    for model in (Vit(program), Vit(tiny_program(seed=1))):
        streams = Streams(model.spec)
        model(images, watch=streams.watch, trim=True)
        losses.append(streams.loss(taught))
    same, other = (float(loss.detach()) for loss in losses)
    assert same < 1e-5 < 0.1 < other
    losses[1].backward()  # type: ignore[no-untyped-call]
    assert float(model.array("stem.weight").grad.abs().max()) > 0  # type: ignore[union-attr]


def test_streams_that_are_trimmed_are_left_out() -> None:
    """Where the last MHSA is gone, its stream holds no patch tokens any more: the other depths count."""
    program = tiny_program(depth=3, removed=("b02_mhsa",))
    images = normalise(program.spec, tiny_images(program.spec, 4))
    taught = Teacher(Vit(tiny_program(depth=3)), tokens=True)(images).tokens
    streams = Streams(program.spec)
    Vit(program)(images, watch=streams.watch, trim=True)
    assert taught is not None and torch.isfinite(streams.loss(taught).detach())
    Vit(program)(images, watch=streams.watch, trim=True)
    assert torch.isnan(streams.take()[-1]).all()
    assert float(streams.loss(taught)) == 0.0


@pytest.mark.parametrize("pool", ["prefix", "mean"])
def test_watching_changes_no_output(pool: str) -> None:
    program = tiny_program(depth=3, pool=pool)
    images = normalise(program.spec, tiny_images(program.spec, 2))
    model, seen = Vit(program), []
    assert torch.equal(model(images), model(images, watch=lambda index, x: seen.append((index, tuple(x.shape)))))
    assert [index for index, _ in seen] == list(range(6))
