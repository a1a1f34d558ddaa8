from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.errors import ImagesError, ProgramError
from edgevit.frontends.preprocessing import Preprocessing, with_preprocessing
from edgevit.program.program import save_program
from tests.tiny import tiny_program

ALL = Preprocessing(
    mean=(0.1, 0.2, 0.3),
    std=(1.0, 0.5, 0.25),
    crop=1.0,
    crop_mode="border",
    interpolation="bilinear",
    orientation="apply",
)


def test_what_is_given_replaces_the_models_own_and_nothing_else() -> None:
    program = tiny_program()
    made = with_preprocessing(program, "my_model", ALL)
    assert made.spec.image == replace(
        program.spec.image,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 0.5, 0.25),
        crop_pct=1.0,
        crop_mode="border",
        interpolation="bilinear",
        orientation="apply",
    )
    assert replace(made.spec, image=program.spec.image) == program.spec
    assert with_preprocessing(program, "my_model", Preprocessing()) is program
    only = with_preprocessing(program, "my_model", Preprocessing(crop=0.5)).spec.image
    assert only == replace(program.spec.image, crop_pct=0.5)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Preprocessing(mean=(123.675, 116.28, 103.53)),
            "--mean is 123.675,116.28,103.53; allowed: 0 to 1.*look like pixels of 0..255: scaled they are "
            "0.485,0.456,0.406",
        ),
        (Preprocessing(std=(58.395, 57.12, 57.375)), "--std is .* scaled they are 0.229,0.224,0.225"),
        (Preprocessing(std=(0.2, 0.0, 0.2)), "--std is 0.2,0,0.2; allowed: 0.001 to 1, of pixels scaled to 0..1$"),
        (Preprocessing(mean=(0.5, -0.1, 0.5)), "--mean is 0.5,-0.1,0.5"),
        (Preprocessing(mean=(float("nan"),) * 3), "--mean is nan"),
    ],
)
def test_means_that_are_not_of_scaled_pixels_are_refused(wanted: Preprocessing, said: str) -> None:
    with pytest.raises(ImagesError, match=said):
        with_preprocessing(tiny_program(), "my_model", wanted)


def test_a_program_keeps_what_it_was_made_with(tmp_path: Path) -> None:
    save_program(tiny_program(), tmp_path / "program")
    for model in (str(tmp_path / "program"), "vit_tiny_gated"):
        with pytest.raises(ProgramError, match=r"is a Program.*omit --std, --crop-mode"):
            with_preprocessing(tiny_program(), model, Preprocessing(std=(0.2,) * 3, crop_mode="squash"))
