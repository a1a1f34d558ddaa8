"""What a user says about an own model's images reaches the network, the contract and the bundle's runner."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.api import load, training
from edgevit.backends.reference import reference
from edgevit.bundle import runner
from edgevit.cli import main
from edgevit.errors import ImagesError, ProgramError
from edgevit.images.calibration_checks import split_calibration
from edgevit.images.image_set import load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program, load_program
from edgevit.program.spec import ImageSpec
from tests.compressing import dense, photos, recipe
from tests.tiny import tiny_program

OPTIONS = ["--mean", "0.4,0.5,0.6", "--std", "0.25", "--crop", "0.8", "--crop-mode", "border"]
OPTIONS += ["--interpolation", "bilinear", "--orientation", "apply"]
WANTED = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.25, 0.25, 0.25],
    "crop_pct": 0.8,
    "crop_mode": "border",
    "interpolation": "bilinear",
    "orientation": "apply",
}


def named(program: Program) -> Any:
    """Stands in for a name whose weights are elsewhere."""
    return lambda *_, **__: program


@pytest.fixture
def lenient(tmp_path: Path) -> Path:
    from edgevit.util.resources import shipped

    lines = (shipped("targets") / "x86-64-onnxruntime.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))]
    path = tmp_path / "lenient.toml"
    path.write_text("\n".join(['name = "lenient"', "min_agreement = 0.0", "max_top1_drop = 1.0", *kept]))
    return path


def test_a_build_prepares_calibrates_and_tells_as_it_was_asked(
    lenient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "resolve", named(tiny_program()))
    folder, out = photos(tmp_path / "photos", each=6), tmp_path / "out"
    exif = Image.Exif()
    exif[0x112] = 6
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8))
    wide.save(folder / "kind0" / "0.png", exif=exif)
    (folder / "kind0" / "1.png").write_bytes(b"broken")
    command = ["build", "my_model", "--target", str(lenient), "--calibration", str(folder), "-o", str(out), *OPTIONS]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "warning: 1 of 24 images" in said and "kind0/1.png: not an image" in said
    manifest = json.loads((out / "manifest.json").read_text())
    contract = manifest["input"]["preprocessing"]
    assert {name: contract[name] for name in WANTED} == WANTED
    image = ImageSpec(**{**contract, "mean": tuple(contract["mean"]), "std": tuple(contract["std"])})
    loaded = load_images(folder, image)
    assert manifest["recipe"]["calibration_sha256"] == split_calibration(loaded)[0].digest
    np.testing.assert_array_equal(runner.read_image(folder / "kind0" / "0.png", asdict(image))[0], loaded.images[0])


def test_a_compression_keeps_what_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "resolve", named(dense()))
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    short = recipe(tmp_path / "short.toml", epochs_joint=1, epochs_recover=1, crop_pct=0.7)
    command = ["compress", "my_model", "--data", folder, "--recipe", short, "--macs", "0.6", "-o", out, *OPTIONS]
    assert main(list(map(str, command))) == 0, capsys.readouterr().err
    image = asdict(load_program(out / "program").spec.image)
    assert {name: list(v) if isinstance(v := image[name], tuple) else v for name in WANTED} == WANTED
    said = capsys.readouterr().err
    assert "its 4 class folders are taken as the classes in natural order, kind0 as class 0" in said


@pytest.mark.parametrize("command", ["build", "compress"])
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--mean", "0.5,0.5"], 2, "three numbers with commas"),
        (["--mean", "0.5;0.5;0.5"], 2, "three numbers with commas"),
        (["--std", "nan"], 2, "three numbers with commas"),
        (["--crop", "90"], 2, "range"),
        (["--crop-mode", "middle"], 2, "squash"),
        (["--orientation", "turn"], 2, "ignore"),
        (["--mean", "123.7,116.3,103.5"], ImagesError.exit_code, "0.4851,0.4561,0.4059"),
    ],
)
def test_what_cannot_be_is_refused(
    command: str,
    options: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (load, training):
        monkeypatch.setattr(module, "resolve", named(dense()))
    more = ["--target", "x86-64-onnxruntime"] if command == "build" else ["--data", str(photos(tmp_path / "photos"))]
    assert main([command, "my_model", *more, "-o", str(tmp_path / "out"), *options]) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_program_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "--target", "x86-64-onnxruntime", "-o", str(tmp_path / "out"), "--orientation", "apply"]
    assert main(command) == ProgramError.exit_code
    assert "omit --orientation" in capsys.readouterr().err


@pytest.fixture
def right(tmp_path: Path) -> tuple[Program, dict[Path, int]]:
    """A model of three classes and, as the truth about every photograph, what it answers."""
    program = tiny_program(classes=3)
    images = load_images(photos(tmp_path / "pool", each=15, size=40), program.spec.image)
    run = reference(assemble(program)).run
    logits = np.concatenate([run(image[None])[0] for image in images.images])
    bias = program.weights["head.bias"] - logits.mean(axis=0)  # so that it answers all three
    answers = (logits - logits.mean(axis=0)).argmax(axis=1).tolist()
    assert set(answers) == {0, 1, 2}
    paths = [tmp_path / "pool" / name for name in images.names]
    return program.with_weights({"head.bias": bias}), dict(zip(paths, answers, strict=True))


@pytest.mark.parametrize(
    ("folders", "named_labels", "top1", "says"),
    [
        (("gnu", "ant", "fox"), True, 1.0, "matched to the model's classes by name"),
        (("class_2", "class_9", "class_10"), False, 1.0, "in natural order, class_2 as class 0 to class_10 as class 2"),
        (("0", "1", "2"), False, 1.0, "taken as class numbers"),
        (("1", "2", "3"), False, None, "whether they count from 0 or from 1 cannot be told"),
        (("a", "b", ""), False, None, "2 class folders (a, b), but tiny has 3 classes (0 to 2)"),
        (("gnu", "ant", "elk"), True, None, "the others are not: elk"),
        (("1", "2", "0"), False, 0.0, "warning: the float model's own top-1 is 0.0%"),
    ],
)
def test_class_folders_give_the_true_top1_or_are_refused(
    folders: tuple[str, ...],
    named_labels: bool,
    top1: float | None,
    says: str,
    right: tuple[Program, dict[Path, int]],
    lenient: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, truth = right
    monkeypatch.setattr(load, "resolve", named(program))
    for path, label in truth.items():
        if folders[label]:
            place = tmp_path / "set" / folders[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfgnu\r\nant\r\nfox\r\n\r\n")
    options = ["--calibration", tmp_path / "pool", "--limit", "8", "--eval", tmp_path / "set", "-o", tmp_path / "out"]
    options += ["--labels", tmp_path / "names.txt"] if named_labels else []
    status = main(["build", "my_model", "--target", str(lenient), *map(str, options)])
    assert says in capsys.readouterr().err
    assert status == (ImagesError.exit_code if top1 is None else 0)
    if top1 is not None:
        rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["accuracy"]
        assert {row["value"] for row in rows if row["metric"] == "top1" and row["model"] != "bundle"} == {top1}
    if top1 is not None and named_labels:
        assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["gnu", "ant", "fox"]
