"""What `edgevit compress` makes of its data: classes, labels and splits, a new head, images that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit import errors
from edgevit.program.original import weights_digest
from edgevit.program.program import load_program
from tests.compressing import (
    compressed,
    dense,
    photos,
    recipe,
    saved,
)
from tests.pictures import npz, picture_bytes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return saved(dense(), tmp_path / "dense")


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return recipe(tmp_path / "short.toml", epochs_joint=1, epochs_recover=1)


def test_a_new_head_learns_the_classes_of_the_data(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = saved(dense(classes=10), tmp_path / "ten")
    status, _, said = compressed(capsys, program, "--data", images, "-o", tmp_path / "no")
    assert status == errors.ImagesError.exit_code
    assert "4 classes" in said
    assert "10" in said
    assert "--new-head" in said
    assert not (tmp_path / "no").exists()
    long = recipe(tmp_path / "long.toml", epochs_recover=10, rate_recover=3e-3, ema=0.0)
    options = ["--data", images, "--recipe", long, "-o", tmp_path / "out", "--new-head", "--json"]
    status, said, _ = compressed(capsys, program, *options)
    assert status == 0
    answer = json.loads(said)
    assert answer["dense"]["top1"] is answer["agreement"] is None
    assert answer["compressed"]["top1"] > 0.6
    made = load_program(tmp_path / "out" / "program").spec
    assert (made.head.classes, made.labels) == (4, ("kind0", "kind1", "kind2", "kind3"))
    assert made.branches == dense(classes=10).spec.branches
    assert made.original is None
    # Evaluated by the names it has learned: a class alone, after it in the alphabet, stays the class that it is.
    few = photos(tmp_path / "few", classes=4, seed=3)
    for label in (0, 1):
        shutil.rmtree(few / f"kind{label}")
    nothing = ["--recipe", recipe(tmp_path / "nothing.toml", epochs_recover=0), "--json"]
    status, said, error = compressed(
        capsys, tmp_path / "out/program", "--data", images, "--eval", few, *nothing, "-o", tmp_path / "again"
    )
    assert status == 0 and "its 2 class folders are matched to the model's classes by name" in error
    assert json.loads(said)["dense"]["top1"] > 0.6


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("static", [None, 0.5])
def test_a_new_head_and_a_budget_in_one_command_keep_what_the_budget_allows(
    steps: int, static: float | None, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new head is zero, and so is all importance behind it: once that took every head and neuron, with code 0."""
    given = dense(classes=10, depth=3, heads=4, hidden=128)
    program = saved(given, tmp_path / "ten")
    short = recipe(tmp_path / "few.toml", batch=72 // steps, epochs_joint=1, epochs_recover=1)
    options = ["--new-head", "--macs", "0.5", *([] if static is None else ["--static", static]), "-o", tmp_path / "out"]
    status, said, told = compressed(capsys, program, "--data", images, "--recipe", short, *options, "--json")
    if 72 // steps * steps < 32:
        assert status == errors.TrainingError.exit_code
        return
    assert status == 0, told
    answer = json.loads(said)
    asked, got = answer["static_budget"], answer["compressed"]["all_open_macs"] / answer["dense"]["all_open_macs"]
    assert asked - 0.02 < got <= asked
    made = load_program(tmp_path / "out" / "program").spec
    assert {b.kind for b in made.branches if not b.removed} == {"mhsa", "ffn"}
    assert "the head is new: it is fitted to the features first" in told


def test_too_few_steps_to_measure_importance_are_an_error(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written then but the checkpoint, and the message says what to do."""
    program = saved(dense(classes=10), tmp_path / "ten")
    few = photos(tmp_path / "few", each=6)
    short = recipe(tmp_path / "few.toml", epochs_joint=1, epochs_recover=1)
    options = ["--data", few, "--recipe", short, "--new-head", "--macs", "0.5", "-o", tmp_path / "out"]
    status, said, told = compressed(capsys, program, *options)
    assert (status, said) == (errors.TrainingError.exit_code, "")
    assert "importance could be measured on 16 images of stage 'joint', but needs 32" in told
    assert "Train for more epochs_joint or on more images, or fine-tune" in told
    assert not (tmp_path / "out" / "program").exists() and not (tmp_path / "out" / "result.json").exists()


def test_a_new_head_for_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = saved(dense(classes=10), tmp_path / "ten")
    one = npz(tmp_path / "one.npz", [picture_bytes(i) for i in range(12)], label=np.zeros(12, np.int64))
    options = ["--data", one, "--new-head", "--macs", "0.5", "-o", tmp_path / "out"]
    status, _, told = compressed(capsys, program, *options)
    assert status == errors.ImagesError.exit_code
    assert "shows images of 1 class, from which a new head learns to tell nothing apart" in told


def test_classes_with_gaps_in_their_numbers_keep_them(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ten classes of ImageNet do; the second call finds them again in the Program."""
    data, program = photos(tmp_path / "photos"), saved(dense(classes=10), tmp_path / "ten")
    for label, name in enumerate(("3", "5", "70", "700")):
        (data / f"kind{label}").rename(data / name)
    options = ["--data", data, "--recipe", short]
    assert compressed(capsys, program, *options, "--new-head", "-o", tmp_path / "one")[0] == 0
    first = tmp_path / "one" / "program"
    assert load_program(first).spec.origin["class_numbers"] == "3 5 70 700"
    assert compressed(capsys, first, *options, "--macs", "0.6", "-o", tmp_path / "two", "--eval", data)[0] == 0
    original = load_program(tmp_path / "two" / "program").spec.original
    assert original is not None and original.weights_sha256 == weights_digest(load_program(first))
    (data / "5").rename(data / "6")
    status, _, said = compressed(capsys, first, *options, "-o", tmp_path / "three")
    assert status == errors.ImagesError.exit_code
    assert "6" in said


def test_some_of_the_models_classes_are_kept_and_taught(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classifier's rows of these classes, in the order given; the data's labels are the model's numbers."""
    data, program = photos(tmp_path / "photos"), saved(dense(classes=10), tmp_path / "ten")
    for label, name in enumerate(("1", "4", "5", "8")):
        (data / f"kind{label}").rename(data / name)
    options = ["--data", data, "--recipe", short, "--json"]
    still = recipe(tmp_path / "still.toml", epochs_recover=0)
    status, out, _ = compressed(
        capsys, program, "--data", data, "--recipe", still, "--json", "--classes", "8,1,5,4", "-o", tmp_path / "same"
    )
    assert status == 0
    assert json.loads(out)["agreement"] == 1.0
    given, same = load_program(program), load_program(tmp_path / "same" / "program")
    assert np.array_equal(same.weights["head.weight"], given.weights["head.weight"][:, [8, 1, 5, 4]])
    assert same.spec.class_numbers == (8, 1, 5, 4)
    kept = ["--classes", "8,1,5,4", "--macs", "0.6"]
    status, out, _ = compressed(capsys, program, *options, *kept, "-o", tmp_path / "out")
    assert status == 0
    assert json.loads(out)["compressed"]["macs"] < json.loads(out)["dense"]["macs"]
    assert load_program(tmp_path / "out" / "program").spec.class_numbers == (8, 1, 5, 4)
    status, _, said = compressed(capsys, program, *options, "--classes", "8,1,5", "-o", tmp_path / "few")
    assert status == errors.ImagesError.exit_code
    assert "got 4; tiny has 3 classes (8, 1, 5)" in said
    status, _, said = compressed(capsys, program, *options, "--classes", "8,1", "--new-head", "-o", tmp_path / "both")
    assert status == errors.TrainingError.exit_code
    assert "give one" in said


def test_without_labels_the_model_teaches(
    program: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted(photos(tmp_path / "photos").rglob("*.png"))):
        path.rename(flat / f"{index}.png")
    options = ["--data", flat, "--recipe", short, "--json"]
    status, out, said = compressed(capsys, program, *options, "--macs", "0.6", "-o", tmp_path / "out")
    assert status == 0
    assert "training without labels" in said
    answer = json.loads(out)
    assert answer["recipe"]["teacher"] == 1.0
    assert answer["compressed"]["top1"] is None
    assert 0 <= answer["agreement"] <= 1
    status, _, said = compressed(capsys, program, *options, "--new-head", "-o", tmp_path / "no")
    assert status == errors.TrainingError.exit_code
    assert "a new head needs labelled data" in said


def test_labels_can_be_left_unused(
    images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they are another model's classes."""
    program = saved(dense(classes=10), tmp_path / "ten")
    options = ["--unlabelled", "--data", images, "--recipe", short, "-o", tmp_path / "out", "--json"]
    tested = photos(tmp_path / "tested")
    rows = [f"{path.relative_to(tested)},{path.parent.name[-1]}" for path in tested.rglob("*.png")]
    (tested / "labels.csv").write_text("\n".join(["file,label", *rows]))
    status, out, _ = compressed(capsys, program, *options, "--macs", "0.6", "--eval", tested)
    assert status == 0
    answer = json.loads(out)
    assert answer["images"] == 80
    assert answer["evaluated_on"] == str(tested)
    assert answer["compressed"]["top1"] is not None


def test_the_split_of_the_data_is_what_is_measured(
    program: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "data" / "train")
    photos(tmp_path / "data" / "val", each=3, seed=1)
    options = ["--data", tmp_path / "data", "--recipe", short, "-o", tmp_path / "out", "--json"]
    status, out, _ = compressed(capsys, program, *options, "--macs", "0.6")
    assert status == 0
    assert json.loads(out)["images"] == 12


def test_images_that_cannot_be_read_are_told_of(
    program: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tested = photos(tmp_path / "data"), photos(tmp_path / "tested", each=5)
    for path in (*(data / f"kind{label}" / "3.png" for label in range(4)), tested / "kind2" / "0.png"):
        path.write_bytes(b"broken")
    options = ["--data", data, "--eval", tested, "--recipe", short, "-o", tmp_path / "out", "--macs", "0.6"]
    status, out, said = compressed(capsys, program, *options)
    assert status == 0
    assert "images to train on cannot be read, others stood in (first: kind" in said
    assert "warning: 1 of 20 images to test on cannot be read and are left out" in said
    assert "19 images of" in out


def test_partly_labelled_images_train_without_the_rest(
    program: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "some"
    place.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{index}.png")
        rows += [f"{index}.png,{index % 4}"] if index < 50 else []
    (place / "labels.csv").write_text("\n".join(["file,label", *rows]))
    options: list[Any] = [program, "--data", place, "--recipe", short, "--macs", "0.7", "-o", tmp_path / "out"]
    status, _, said = compressed(capsys, *options)
    assert status == 0
    assert "10 of 60 images have no label and are left out" in said
