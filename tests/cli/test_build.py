"""`edgevit build` as a user meets it: one clear message and its exit code for every wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit import errors
from edgevit.cli import main
from edgevit.models.program import save_program
from tests.tiny import tiny_program


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "program"
    save_program(tiny_program(gated=True, skip=True), folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The ONNX Runtime target without accuracy limits: a random model's logits are near ties."""
    from edgevit.resources import shipped

    text = (shipped("targets") / "x86-64-onnxruntime.toml").read_text()
    lines = [
        line for line in text.splitlines() if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))
    ]
    path = tmp_path / "lenient.toml"
    path.write_text('name = "lenient"\nmin_agreement = 0.0\nmax_top1_drop = 1.0\n' + "\n".join(lines))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_build_verify_and_report(
    program: Path, target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos), "-o", str(folder)]
    assert main(command) == 0
    assert f"Bundle: {folder}" in capsys.readouterr().out
    assert main(["verify", f"{folder}.zip"]) == 0
    assert main(command) == errors.OutputError.exit_code
    capsys.readouterr()
    assert main([*command, "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in answer["manifest"]["claims"]} == {"coverage", "parity", "skip", "bound", "accuracy"}


def test_class_names_travel_into_the_bundle(program: Path, target: Path, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(10)))
    folder = tmp_path / "out"
    options = ["--target", str(target), "--calibration", str(photos), "-o", str(folder), "--labels", str(names)]
    assert main(["build", str(program), *options]) == 0
    assert json.loads((folder / "labels.json").read_text())[3] == "class 3"
    names.write_text("only one")
    assert main(["build", str(program), *options, "--force"]) == errors.ImagesError.exit_code


def test_a_bundle_of_some_classes_knows_their_numbers_and_the_labels_of_the_images(
    program: Path, target: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "labels.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{(7, 2)[i % 2]}" for i in range(6)))
    folder = tmp_path / "out"
    options = ["--target", str(target), "--calibration", str(photos), "--eval", str(photos), "-o", str(folder)]
    assert main(["build", str(program), *options, "--classes", "7,2,5"]) == 0
    assert json.loads((folder / "labels.json").read_text()) == ["7", "2", "5"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["outputs"][0]["shape"] == [1, 3] and manifest["recipe"]["classes"] == [7, 2, 5]
    assert {row["metric"] for row in manifest["accuracy"]} >= {"top1", "agreement"}
    assert main(["verify", str(folder)]) == 0
    assert main(["build", str(program), *options, "--classes", "7,5", "--force"]) == errors.ImagesError.exit_code


def test_dry_run_builds_nothing(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(program), "--target", "x86-64-onnxruntime", "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["int8_linears"] == predicted["linears"] == 10
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["{program}", "--target", "x86-64-onxruntime"], errors.TargetError, "x86-64-onnxruntime"),
        (["{program}", "--target", "x86-64-onnxruntime", "--tune", "5"], errors.TargetError, "no tiles to search"),
        (["{program}", "--target", "x86-64-onnxruntime", "--classes", "3,10"], errors.ImagesError, "0 to 9"),
        (["no/such", "--target", "x86-64-onnxruntime"], errors.ProgramError, "no folder"),
        (["deit_tny_patch16_224", "--target", "x86-64-onnxruntime"], errors.UnknownModelError, "deit_tiny_patch16_224"),
        (["{program}", "--target", "x86-64-onnxruntime", "--calibration", "{tmp}/none"], errors.ImagesError, "none"),
        (["{program}", "--target", "x86-64-onnxruntime", "--calibration", "{empty}"], errors.ImagesError, "no image"),
        (["{program}", "--target", "x86-64-onnxruntime", "-o", "{empty}/x.txt"], errors.OutputError, "x.txt"),
        (
            ["{program}", "--target", "x86-64-onnxruntime", "--prune", "0.99", "--dry-run"],
            errors.BudgetError,
            "at most",
        ),
    ],
)
def test_wrong_input_is_one_message_and_an_exit_code(
    arguments: list[str],
    error: type[errors.EdgevitError],
    said: str,
    program: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.txt").write_text("a file")
    names = {"program": program, "tmp": tmp_path, "empty": empty}
    before = sorted(tmp_path.rglob("*"))
    assert main(["build", *(a.format(**names) for a in arguments)]) == error.exit_code
    said_all = capsys.readouterr().err
    assert said in said_all
    assert "Traceback" not in said_all
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_beyond_the_classes_are_refused(
    program: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "labels.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{i + 7}" for i in range(6)))
    command = [
        "build",
        str(program),
        "--target",
        "x86-64-onnxruntime",
        "--eval",
        str(photos),
        "-o",
        str(tmp_path / "o"),
    ]
    assert main(command) == errors.ImagesError.exit_code
    assert capsys.readouterr().err


def test_labels_for_a_model_with_one_score_are_refused_before_it_is_built(
    target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_program(tiny_program(classes=1), tmp_path / "one")
    command = [
        "build",
        str(tmp_path / "one"),
        "--target",
        str(target),
        "--eval",
        str(photos),
        "-o",
        str(tmp_path / "o"),
    ]
    assert main(command) == errors.ImagesError.exit_code
    said = capsys.readouterr().err
    assert "tiny gives one score, so labels say nothing about it; leave --eval away" in said
    assert "Quantizing" not in said and not (tmp_path / "o").exists()
