"""Positions of images that are smaller than the Program's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from edgevit.frontends.timm_import import timm
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program
from tests.torch_form.test_vit import VARIANTS

torch.set_num_threads(1)


@pytest.mark.parametrize("options", VARIANTS)
def test_smaller_images_are_as_a_model_whose_positions_timm_resampled(options: dict[str, Any]) -> None:
    program = tiny_program(**options)
    spec = program.spec
    image = replace(spec.image, height=spec.image.height - 8, width=spec.image.width - 16)
    small = replace(spec, image=image)
    table = torch.tensor(program.weights["stem.pos"])[None]
    table = timm.layers.resample_abs_pos_embed(table, list(small.grid), list(spec.grid), num_prefix_tokens=0)
    resampled = Vit(program.with_weights({"stem.pos": table[0].numpy()}, small))
    pixels = normalise(small, tiny_images(small, 3))
    for trim in (False, True):
        decide = resampled.hard_gates() if spec.gated else None
        given = Vit(program)
        also = given.hard_gates() if spec.gated else None
        torch.testing.assert_close(
            given(pixels, also, trim=trim), resampled(pixels, decide, trim=trim), atol=1e-5, rtol=1e-5
        )
