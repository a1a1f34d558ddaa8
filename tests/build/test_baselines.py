"""What a build is timed against: made of a Program, loaded again, run; what fails is a remark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.build import baselines
from tests.tiny import tiny_images, tiny_program


def test_all_three_compute_the_same_function(tmp_path: Path) -> None:
    program = tiny_program()
    made = baselines.prepare(program, tmp_path)
    assert [each["name"] for each in made] == ["dense float", "dense float, PyTorch", "dense int8, dynamic"]
    image = tiny_images(program.spec, 1)
    answers = []
    for each in made:
        assert each["why"] == ""
        runner = baselines.load(each["kind"], Path(each["folder"]), threads=1)
        answers.append(runner.run(image)[0])
        runner.close()
    assert np.allclose(answers[0], answers[1], atol=1e-4)
    assert np.abs(answers[2] - answers[0]).max() < answers[0].std()


def test_what_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    made = baselines.prepare(tiny_program(), tmp_path)
    assert [each["why"] for each in made] == ["", "PyTorch is not installed", "RuntimeError: no such kernel"]


def test_a_compressed_model_is_not_called_dense(tmp_path: Path) -> None:
    made = baselines.prepare(tiny_program(gated=True), tmp_path)
    assert made[0]["name"] == "tiny, float" and made[2]["name"] == "tiny, int8, dynamic"
