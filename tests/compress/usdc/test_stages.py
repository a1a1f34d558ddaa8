"""What the stages of a training start with and take from the recipe."""

from __future__ import annotations

import numpy as np
import torch

from edgevit.compress.budgets import Budgets
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.stages import prepare, stage_settings, with_crop
from edgevit.torch_form.stream import batches, mean_outputs
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

RECIPE = TrainRecipe(ramp=0.8)
SHAPE = {"depth": 3, "dim": 32, "heads": 4, "hidden": 64}


@torch.no_grad()
def test_open_gates_change_nothing_at_first_and_closed_ones_leave_the_mean() -> None:
    dense = tiny_program(**SHAPE)
    images = tiny_images(dense.spec, 8)
    prepared = prepare(dense, Budgets(expected=0.5, static=1.0), images, RECIPE)
    x = batches(dense.spec, images, 8)[0]
    torch.testing.assert_close(Vit(prepared)(x), Vit(dense)(x))
    means = mean_outputs(Vit(dense), [x])
    assert np.array_equal(prepared.weights["b01_ffn.skip"], means["b01_ffn"].numpy())
    assert float(prepared.weights["b01_ffn.gate.bias"][0]) == RECIPE.gate_bias
    assert prepare(dense, Budgets(expected=0.5, static=0.5), images, RECIPE) is dense


def test_the_stages_take_their_own_numbers() -> None:
    joint = stage_settings(RECIPE, joint=True, learns=True, bfloat16=False, first_step=0)
    recover = stage_settings(RECIPE, joint=False, learns=False, bfloat16=False, first_step=3)
    assert (joint.rate, joint.epochs, joint.ema, joint.teacher) == (RECIPE.rate_joint, RECIPE.epochs_joint, 0.0, 0.9)
    assert (recover.rate, recover.epochs, recover.ema) == (RECIPE.rate_recover, RECIPE.epochs_recover, RECIPE.ema)
    assert recover.teacher == 0.0


def test_a_crop_of_its_own() -> None:
    program = tiny_program()
    assert with_crop(program, 0.0) is program
    assert with_crop(program, 1.0).spec.image.crop_pct == 1.0
