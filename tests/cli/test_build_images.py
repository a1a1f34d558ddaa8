"""The images of `edgevit build`: what calibrates, what is held out or judged on, and the original they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit import errors
from edgevit.cli import main
from edgevit.program.program import save_program
from tests.tiny import tiny_images, tiny_program


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    """Twenty-four images as the photographs that models see: smooth, and none like another."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index, image in enumerate(tiny_images(tiny_program().spec, 24)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def test_agreement_is_on_images_that_calibrated_nothing(
    program: Path, target: Path, many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    options = ["--target", str(target), "--calibration", str(many_photos), "-o", str(folder)]
    assert main(["build", str(program), *options]) == 0
    said = capsys.readouterr()
    told = " ".join(said.out.split())
    assert "n = 8), on images held out of the calibration" in told and "warning" not in said.err
    manifest = manifest_of(folder)
    assert (manifest["recipe"]["calibration_images"], manifest["recipe"]["held_out"]) == (16, 8)
    assert {row["images"] for row in manifest["accuracy"]} == {8}


def test_too_few_images_to_hold_any_out_are_said(
    program: Path, target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", str(target), "--calibration", str(photos), "-o", str(tmp_path / "out")]
    assert main(["build", str(program), *options]) == 0
    said = capsys.readouterr()
    assert "on the calibration images themselves, which are too few to hold any out" in " ".join(said.out.split())
    assert "warning: 6 different images are few to calibrate with" in said.err
    assert manifest_of(tmp_path / "out")["recipe"]["held_out"] == 0


@pytest.mark.parametrize("kind", ["black", "one", "equal"])
def test_images_that_exercise_no_range_are_refused_before_anything_slow(
    kind: str, program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    picture = tiny_images(tiny_program().spec, 1)[0] * (kind != "black")
    for index in range({"black": 8, "one": 1, "equal": 16}[kind]):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")
    command = ["build", str(program), "--target", "x86-64-onnxruntime", "--calibration", str(folder)]
    assert main([*command, "-o", str(tmp_path / "out")]) == errors.ImagesError.exit_code
    said = capsys.readouterr().err
    assert "cannot calibrate a model" in said and "Quantizing" not in said


def test_the_images_to_judge_on_must_be_others_than_those_that_calibrate(
    program: Path, target: Path, many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (many_photos / "labels.csv").write_text("file,label\n" + "\n".join(f"{i:02}.png,{i % 10}" for i in range(24)))
    options = ["--target", str(target), "--calibration", str(many_photos), "--eval", str(many_photos)]
    (many_photos / "23.png").write_bytes((many_photos / "22.png").read_bytes())
    assert main(["build", str(program), *options, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "warning: 24 of 24 images of --eval are among those that calibrate" in said
    assert "warning: 1 of 24 images of --eval are copies of others" in said


def test_an_original_that_is_named_is_compared_with_and_kept(
    program: Path, target: Path, many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, kept = tmp_path / "original", tmp_path / "kept"
    save_program(tiny_program(), original)
    options = ["--target", str(target), "--calibration", str(many_photos), "-o", str(tmp_path / "out"), "--force"]
    limited = [*options, "--max-drop", "100"]
    assert main(["build", str(program), *limited]) == errors.ProgramError.exit_code
    said = capsys.readouterr().err
    assert "--max-drop is against the original of tiny" in said and "--original" in said and "Quantizing" not in said
    assert main(["build", str(program), *limited, "--original", str(original), "--save-program", str(kept)]) == 0
    assert "agrees with the original on" in " ".join(capsys.readouterr().out.split())
    assert [(r["model"], r["against"]) for r in manifest_of(tmp_path / "out")["accuracy"]] == [
        ("compressed", "original"),
        ("bundle", "original"),
        ("bundle", "float"),
    ]
    # The saved Program knows what the original said on these images, so it is not needed again.
    assert main(["build", str(kept), *limited]) == 0
    assert "agrees with the original on" in " ".join(capsys.readouterr().out.split())
    assert main(["build", str(kept), *options, "--max-drop", "0"]) == errors.AccuracyError.exit_code
    assert "points of agreement against the original" in capsys.readouterr().err
    save_program(tiny_program(seed=5), tmp_path / "stranger")
    assert main(["build", str(kept), *options, "--original", str(tmp_path / "stranger")]) == 0
    assert "is not the model that tiny was compressed from" in capsys.readouterr().err


def test_what_compression_cost_is_kept_with_the_program_it_made(
    target: Path, many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, kept = tmp_path / "dense", tmp_path / "kept"
    save_program(tiny_program(depth=3, hidden=64), dense)
    options = ["--target", str(target), "--calibration", str(many_photos), "-o", str(tmp_path / "out"), "--force"]
    assert main(["build", str(dense), *options, "--prune", "0.3", "--save-program", str(kept)]) == 0
    built = manifest_of(tmp_path / "out")
    assert built["recipe"]["original"] == "tiny" and built["recipe"]["compression"][0].startswith("pruned by 30% of")
    (said,) = json.loads((kept / "program.json").read_text())["spec"]["original"]["evaluations"]
    agreement = next(r["value"] for r in built["accuracy"] if r["model"] == "compressed")
    # The folder holds float16, the build float32: a near tie may fall otherwise.
    assert said["images"] == 8 and abs(said["agreement"] - agreement) <= 1 / 8
    assert main(["build", str(kept), *options]) == 0
    again = manifest_of(tmp_path / "out")
    assert again["recipe"]["prune"] == 0.0 and again["recipe"]["compression"] == built["recipe"]["compression"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pruned by 30% of its MACs" in page and "<dt>prune</dt>" not in page


def test_a_checkpoint_of_no_original_is_refused(program: Path, tmp_path: Path) -> None:
    options = ["--target", "x86-64-onnxruntime", "--original-weights", str(tmp_path / "weights.safetensors")]
    assert main(["build", str(program), *options]) == errors.ProgramError.exit_code
