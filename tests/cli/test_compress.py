"""`edgevit compress` as a user meets it: what it prints and writes, and one message with an exit code for the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit import errors
from edgevit.api.training import Trained, _compare_memory
from edgevit.cli import main
from edgevit.compress.training.checkpoint import load
from edgevit.compress.training.recipe import load_recipe
from edgevit.program.macs import total_macs
from edgevit.program.original import weights_digest
from edgevit.program.program import load_program
from edgevit.util import strict_json
from tests.compressing import dense, ended, files, metrics, photos, recipe, saved, started, steps_logged, wait_for
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


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `edgevit compress`."""
    capsys.readouterr()
    status = main(["compress", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out, said.err


def test_it_tells_what_came_of_it_and_what_comes_next(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, said, _ = run(capsys, program, "--data", images, "--macs", "0.5", "--recipe", short, "-o", out)
    assert status == 0
    assert f"Program: {out / 'program'}\nNext: edgevit build {out / 'program'} --target x86-64-onnxruntime" in said
    for word in ("top-1", "agreement", "expected", "all open", "weights", "heads", "neurons", "branches"):
        assert word in said
    result = json.loads((out / "result.json").read_text())
    made, was = load_program(out / "program"), dense()
    assert result["dense"]["all_open_macs"] == total_macs(was.spec)
    assert result["compressed"]["all_open_macs"] == total_macs(made.spec) < total_macs(was.spec)
    assert result["compressed"]["weights_bytes"] == 4 * sum(a.size for a in made.weights.values())
    assert result["compressed"]["branches"] == sum(not b.removed for b in made.spec.branches)
    assert result["images"] == 8
    assert 0 <= result["compressed"]["top1"] <= 1
    original = made.spec.original
    assert original is not None and original.macs == total_macs(was.spec) and original.steps[0].startswith("trained to")
    (kept,) = original.evaluations
    assert (kept.original_top1, kept.top1) == (result["dense"]["top1"], result["compressed"]["top1"])
    assert (kept.agreement, kept.images) == (result["agreement"], 8)
    assert load_recipe(out / "recipe.toml") == load_recipe(short)
    assert metrics(out)


def test_json_is_one_object_and_the_command_line_overrules_the_recipe(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", short, "-o", tmp_path / "out", "--groups", "random 1 4", "--seed", "5", "--threads", "1"]
    status, said, _ = run(capsys, program, "--data", images, "--macs", "0.6", "--static", "0.8", *options, "--json")
    assert status == 0
    answer = json.loads(said)
    assert answer["recipe"]["groups"] == "random 1 4"
    assert answer["recipe"]["seed"] == 5
    assert (answer["expected_budget"], answer["static_budget"]) == (0.6, 0.8)
    assert answer == json.loads((tmp_path / "out" / "result.json").read_text())


def test_what_was_compressed_builds(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bundle, target = tmp_path / "out", tmp_path / "bundle", tmp_path / "lenient.toml"
    assert run(capsys, program, "--data", images, "--macs", "0.5", "--recipe", short, "-o", out)[0] == 0
    from edgevit.util.resources import shipped

    kept = (shipped("targets") / "x86-64-onnxruntime.toml").read_text().splitlines()
    kept = [line for line in kept if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))]
    target.write_text("\n".join(['name = "lenient"', "min_agreement = 0.0", "max_top1_drop = 1.0", *kept]))
    command = ["build", str(out / "program"), "--target", str(target), "--calibration", str(images), "--limit", "8"]
    assert main([*command, "-o", str(bundle)]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert all(claim["held"] for claim in manifest["claims"])


def test_a_new_head_learns_the_classes_of_the_data(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = saved(dense(classes=10), tmp_path / "ten")
    status, _, said = run(capsys, program, "--data", images, "-o", tmp_path / "no")
    assert status == errors.ImagesError.exit_code
    assert "4 classes" in said
    assert "10" in said
    assert "--new-head" in said
    assert not (tmp_path / "no").exists()
    long = recipe(tmp_path / "long.toml", epochs_recover=10, rate_recover=3e-3, ema=0.0)
    options = ["--data", images, "--recipe", long, "-o", tmp_path / "out", "--new-head", "--json"]
    status, said, _ = run(capsys, program, *options)
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
    status, said, error = run(
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
    status, said, told = run(capsys, program, "--data", images, "--recipe", short, *options, "--json")
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
    status, said, told = run(capsys, program, *options)
    assert (status, said) == (errors.TrainingError.exit_code, "")
    assert "importance could be measured on 16 images of stage 'joint', but needs 32" in told
    assert "Train for more epochs_joint or on more images, or fine-tune" in told
    assert not (tmp_path / "out" / "program").exists() and not (tmp_path / "out" / "result.json").exists()


def test_following_the_model_alone_is_no_measurement_at_first(
    program: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that still is its teacher has no derivative; the result still is within the budget."""
    options = ["--unlabelled", "--macs", "0.55", "--static", "0.55", "-o", tmp_path / "out", "--json"]
    short = recipe(tmp_path / "few.toml", epochs_joint=2, epochs_recover=1)
    status, said, told = run(capsys, program, "--data", images, "--recipe", short, *options)
    assert status == 0, told
    made, was = load_program(tmp_path / "out" / "program").spec, dense().spec
    assert {b.kind for b in made.branches if not b.removed} == {"mhsa", "ffn"}
    got = total_macs(made) / total_macs(was)
    assert got <= 0.55
    assert got > 0.53 or f"warning: pruning leaves {got:.1%} of the MACs where 55.0% were asked for" in told


def test_a_new_head_for_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = saved(dense(classes=10), tmp_path / "ten")
    one = npz(tmp_path / "one.npz", [picture_bytes(i) for i in range(12)], label=np.zeros(12, np.int64))
    options = ["--data", one, "--new-head", "--macs", "0.5", "-o", tmp_path / "out"]
    status, _, told = run(capsys, program, *options)
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
    assert run(capsys, program, *options, "--new-head", "-o", tmp_path / "one")[0] == 0
    first = tmp_path / "one" / "program"
    assert load_program(first).spec.origin["class_numbers"] == "3 5 70 700"
    assert run(capsys, first, *options, "--macs", "0.6", "-o", tmp_path / "two", "--eval", data)[0] == 0
    original = load_program(tmp_path / "two" / "program").spec.original
    assert original is not None and original.weights_sha256 == weights_digest(load_program(first))
    (data / "5").rename(data / "6")
    status, _, said = run(capsys, first, *options, "-o", tmp_path / "three")
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
    status, out, _ = run(
        capsys, program, "--data", data, "--recipe", still, "--json", "--classes", "8,1,5,4", "-o", tmp_path / "same"
    )
    assert status == 0
    assert json.loads(out)["agreement"] == 1.0
    given, same = load_program(program), load_program(tmp_path / "same" / "program")
    assert np.array_equal(same.weights["head.weight"], given.weights["head.weight"][:, [8, 1, 5, 4]])
    assert same.spec.class_numbers == (8, 1, 5, 4)
    kept = ["--classes", "8,1,5,4", "--macs", "0.6"]
    status, out, _ = run(capsys, program, *options, *kept, "-o", tmp_path / "out")
    assert status == 0
    assert json.loads(out)["compressed"]["macs"] < json.loads(out)["dense"]["macs"]
    assert load_program(tmp_path / "out" / "program").spec.class_numbers == (8, 1, 5, 4)
    status, _, said = run(capsys, program, *options, "--classes", "8,1,5", "-o", tmp_path / "few")
    assert status == errors.ImagesError.exit_code
    assert "got 4; tiny has 3 classes (8, 1, 5)" in said
    status, _, said = run(capsys, program, *options, "--classes", "8,1", "--new-head", "-o", tmp_path / "both")
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
    status, out, said = run(capsys, program, *options, "--macs", "0.6", "-o", tmp_path / "out")
    assert status == 0
    assert "training without labels" in said
    answer = json.loads(out)
    assert answer["recipe"]["teacher"] == 1.0
    assert answer["compressed"]["top1"] is None
    assert 0 <= answer["agreement"] <= 1
    status, _, said = run(capsys, program, *options, "--new-head", "-o", tmp_path / "no")
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
    status, out, _ = run(capsys, program, *options, "--macs", "0.6", "--eval", tested)
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
    status, out, _ = run(capsys, program, *options, "--macs", "0.6")
    assert status == 0
    assert json.loads(out)["images"] == 12


def test_images_that_cannot_be_read_are_told_of(
    program: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tested = photos(tmp_path / "data"), photos(tmp_path / "tested", each=5)
    for path in (*(data / f"kind{label}" / "3.png" for label in range(4)), tested / "kind2" / "0.png"):
        path.write_bytes(b"broken")
    options = ["--data", data, "--eval", tested, "--recipe", short, "-o", tmp_path / "out", "--macs", "0.6"]
    status, out, said = run(capsys, program, *options)
    assert status == 0
    assert "images to train on cannot be read, others stood in (first: kind" in said
    assert "warning: 1 of 20 images to test on cannot be read and are left out" in said
    assert "19 images of" in out


def test_memory_is_paid_by_pruning(
    images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = saved(dense(depth=3, dim=64, heads=4, hidden=256), tmp_path / "wide")
    options = ["--data", images, "--recipe", short, "--json"]
    status, out, told = run(capsys, program, *options, "--memory", "150KB", "--macs", "0.35", "-o", tmp_path / "out")
    assert status == 0
    answer = json.loads(out)
    assert answer["dense"]["bound_bytes"] > 150_000 >= answer["compressed"]["bound_bytes"] > 100_000
    assert answer["memory_budget_bytes"] == 150_000
    assert answer["expected_budget"] == 0.35 < answer["static_budget"] < 1
    assert ("more of the model would fit" in told) == (answer["compressed"]["bound_bytes"] < 135_000)
    made = load_program(tmp_path / "out" / "program").spec
    assert made.gated
    assert made.origin["compressed_memory"] == "150000 bytes on x86-64-onnxruntime"


def test_memory_is_held_from_below_too(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that asks for nothing is told, and so is a bound far below what was allowed."""
    options = ["--data", images, "--recipe", short, "--json", "-o", tmp_path / "out"]
    status, out, told = run(capsys, program, *options, "--memory", "100MB")
    assert status == 0
    assert "all of tiny fits into 100000000 bytes on x86-64-onnxruntime: nothing is pruned for memory" in told
    result, said = strict_json.from_data(Trained, json.loads(out), []), list[str]()
    assert result is not None
    for bound, expected in ((95, 0), (89, 1)):
        small = replace(result.compressed, bound_bytes=bound)
        _compare_memory(replace(result, compressed=small, memory_budget_bytes=100, static_budget=0.5), said.append)
        assert len(said) == expected
    assert "the memory bound is 89 of 100 bytes" in said[0] and "--static with more than 0.500" in said[0]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["--macs", "0.01"], errors.BudgetError, "ask for more than 0."),
        (["--macs", "0.5", "--static", "0.02"], errors.BudgetError, "ask for more than 0."),
        (["--memory", "9KB"], errors.BudgetError, "stem and head, which are not pruned, need"),
        (["--memory", "three"], errors.BudgetError, "such as 3.0MiB"),
        (["--memory", "1MB", "--target", "x86-64-openvino"], errors.BudgetError, "has no memory bound"),
        (["--target", "x86-64-onxruntime"], errors.TargetError, "x86-64-onnxruntime"),
        (["--groups", "sometimes"], errors.TrainingError, "no such gate groups"),
        (["--device", "quantum"], errors.TrainingError, "allowed: auto, cpu"),
        (["--recipe", "{tmp}/none.toml"], errors.TrainingError, "none.toml"),
        (["--recipe", "{tmp}/odd.toml"], errors.TrainingError, "unknown key 'epoch'"),
        (["--recipe", "{tmp}/large.toml"], errors.TrainingError, "a batch takes 500"),
        (["--data", "{tmp}/none"], errors.ImagesError, "none"),
        (["--data", "{tmp}/few"], errors.TrainingError, "is too small a data set: of its 4 images"),
        (["--data", "{tmp}/three"], errors.ImagesError, "has 3 classes, but tiny has 4; pass --new-head"),
        (["--data", "{tmp}/three/kind0"], errors.TrainingError, "give at least 4 images"),
        (["--data", "{tmp}/bad"], errors.ImagesError, "got 11; tiny has 4 classes (0 to 3)"),
        (["--data", "{tmp}/one"], errors.ImagesError, "whether they count from 0 or from 1 cannot be told"),
        (
            ["--eval", "{tmp}/three"],
            errors.ImagesError,
            "3 class folders (kind0, kind1, kind2), but tiny has 4",
        ),
        (["--mean", "0,0,0"], errors.ProgramError, "a Program, which knows how its images are prepared"),
        (["--eval", "{tmp}/bad"], errors.ImagesError, "labels that are no classes of the model: got"),
        (
            ["--teacher-cache", "{tmp}/odd.toml"],
            errors.OutputError,
            "odd.toml is a file; choose another place with --teacher-cache",
        ),
        (["--image-size", "64"], errors.ProgramError, "image size"),
        (["--weights", "{tmp}/none"], errors.ProgramError, "its own weights"),
        (["--classes", "0,4"], errors.ImagesError, "0 to 3"),
    ],
)
def test_wrong_input_is_one_message_and_an_exit_code(
    options: list[str],
    error: type[errors.EdgevitError],
    said: str,
    program: Path,
    images: Path,
    short: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "odd.toml").write_text("epoch = 3")
    recipe(tmp_path / "large.toml", batch=500)
    photos(tmp_path / "few", each=1)
    photos(tmp_path / "three", each=1, classes=3)
    bad = photos(tmp_path / "bad")
    for label, name in enumerate(("0", "1", "2", "11")):
        (bad / f"kind{label}").rename(bad / name)
    one = photos(tmp_path / "one")
    for label in range(4):
        (one / f"kind{label}").rename(one / str(label + 1))
    before = sorted(tmp_path.rglob("*"))
    given = ["--data", images, "--recipe", short, "-o", tmp_path / "out", *(o.format(tmp=tmp_path) for o in options)]
    status, _, text = run(capsys, program, *given)
    assert status == error.exit_code, text
    assert said in text
    assert text.count("\n") <= 3
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p != tmp_path / "out"] == []


def test_a_loss_that_is_no_number_names_its_step_and_what_is_good(
    program: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wild = tmp_path / "out", recipe(tmp_path / "wild.toml", epochs_joint=1, rate_recover=1e30)
    status, _, said = run(capsys, program, "--data", images, "--macs", "0.6", "--recipe", wild, "-o", out)
    assert status == errors.TrainingError.exit_code
    assert "at step 6, in stage 'recover'; the checkpoint of step 4 is good and kept" in said
    state = load(out / "checkpoint.pt")
    assert (state["stage"], state["step"]) == ("joint", 4)
    assert all(bool(value.isfinite().all()) for value in state["state"]["model"].values())
    assert not (out / "program").exists()


def test_a_run_is_not_overwritten_and_resumes_with_the_same_inputs_alone(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [program, "--data", images, "--macs", "0.6", "-o", out]
    assert run(capsys, *options, "--recipe", short)[0] == 0
    before = files(out)
    status, _, said = run(capsys, *options, "--recipe", short)
    assert (status, "--resume" in said) == (errors.OutputError.exit_code, True)
    other = recipe(tmp_path / "other.toml", epochs_joint=1, epochs_recover=1, clip=2.0)
    status, _, said = run(capsys, *options, "--recipe", other, "--resume")
    assert status == errors.TrainingError.exit_code
    assert "recipe clip was 1.0, is now 2.0" in said
    damaged = bytearray((out / "checkpoint.pt").read_bytes())
    assert files(out) == before
    damaged[len(damaged) // 2] ^= 255
    (out / "checkpoint.pt").write_bytes(damaged)
    status, _, said = run(capsys, *options, "--recipe", short, "--resume")
    assert status == errors.TrainingError.exit_code
    assert "damaged" in said


def test_a_full_disk_is_told_and_can_be_resumed_from(program: Path, images: Path, tmp_path: Path) -> None:
    """What grows too large is the checkpoint; with room again the run goes on."""
    out, often = tmp_path / "out", recipe(tmp_path / "often.toml", epochs_joint=1, epochs_recover=1)
    command = ["compress", str(program), "--data", str(images), "--macs", "0.6", "--recipe", str(often), "-o", str(out)]
    log = tmp_path / "log"
    assert ended(started(command, log, room_bytes=100_000)) == errors.OutputError.exit_code
    assert "cannot save the checkpoint" in log.read_text()
    assert "go on with --resume" in log.read_text()
    assert not list(out.glob(".*"))
    assert ended(started([*command, "--resume"], log)) == 0
    assert (out / "program").is_dir()


def test_ctrl_c_keeps_the_last_checkpoint_and_says_so(program: Path, images: Path, tmp_path: Path) -> None:
    out, often = tmp_path / "out", recipe(tmp_path / "often.toml", epochs_joint=6, checkpoint_seconds=0.01)
    command = ["compress", str(program), "--data", str(images), "--macs", "0.6", "--recipe", str(often), "-o", str(out)]
    process = started(command, tmp_path / "log")
    wait_for(lambda: steps_logged(out) >= 3, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    said = (tmp_path / "log").read_text()
    step = load(out / "checkpoint.pt")["step"]
    assert f"is kept, of step {step} in stage 'joint'; go on with --resume" in said
    assert "Traceback" not in said


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
    status, _, said = run(capsys, *options)
    assert status == 0
    assert "10 of 60 images have no label and are left out" in said


def test_tokens_merge_under_the_same_budget_and_the_end_says_what_adaptivity_is_worth(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, folder = saved(dense(depth=3), tmp_path / "deeper"), tmp_path / "run"
    numbers = recipe(tmp_path / "r.toml", epochs_joint=1, epochs_recover=1, gates="measured", gate_images=16)
    given = ("--tokens", "1:0-6@0.5", "--macs", "0.6", "--recipe", numbers, "-o", folder)
    status, out, err = run(capsys, program, "--data", images, *given)
    assert status == 0, err
    assert "merging tokens leaves" in err and "cost per image" in out and "every decision frozen at" in out
    result = json.loads((folder / "result.json").read_text())
    follows = result["adaptivity"]
    assert follows["points"] == 1 and follows["frozen_macs"] == pytest.approx(follows["macs"], abs=0.1)
    found = load_program(folder / "program").spec
    assert found.adaptive and found.original is not None
    assert found.original.steps[-1].startswith("cost per image")
    assert len(found.original.steps) == 2


def test_a_plan_that_cannot_be_is_refused_before_training(
    program: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, program, "--data", images, "--tokens", "1:9", "-o", tmp_path / "run")
    assert status == errors.BudgetError.exit_code and "9 tokens are merged after" in err
    assert not list((tmp_path / "run").glob("*"))


def test_a_plan_is_searched_once_and_trained(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = saved(dense(depth=3), tmp_path / "deeper"), tmp_path / "run"
    numbers = recipe(tmp_path / "r.toml", epochs_joint=1, epochs_recover=1, token_share=0.5)
    given = ("--data", images, "--tokens", "search", "--macs", "0.7", "--recipe", numbers, "-o", folder)
    status, _, err = run(capsys, program, *given)
    assert status == 0, err
    assert "looking for tokens to merge, down to 84% of the MACs" in err
    made, first = files(folder / "program"), load_program(folder / "program")
    planned = load_program(folder / "planned").spec
    assert [p.after for p in first.spec.merges] == [p.after for p in planned.merges] != []
    assert total_macs(planned) >= 0.8 * total_macs(dense(depth=3).spec)
    monkeypatch.setattr("edgevit.api.token_plan.search", None)
    assert run(capsys, program, *given, "--resume")[0] == 0
    assert files(folder / "program") == made
    assert run(capsys, program, *given)[0] == errors.OutputError.exit_code
    status, _, err = run(capsys, program, "--data", images, "--tokens", "search", "-o", tmp_path / "other")
    assert status == errors.BudgetError.exit_code and "nothing is to be saved" in err
