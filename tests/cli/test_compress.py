"""`edgevit compress` as a user meets it: what it prints and writes, and one message with an exit code for the rest."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.api.trained import Trained, compare_memory
from edgevit.cli import main
from edgevit.compress.training.checkpoint import load
from edgevit.compress.training.recipe import load_recipe
from edgevit.program.macs import total_macs
from edgevit.program.program import load_program
from edgevit.util import strict_json
from tests.compressing import (
    compressed,
    dense,
    ended,
    files,
    metrics,
    photos,
    recipe,
    saved,
    started,
    steps_logged,
    wait_for,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return saved(dense(), tmp_path / "dense")


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return recipe(tmp_path / "short.toml", epochs_joint=1, epochs_recover=1)


def test_it_tells_what_came_of_it_and_what_comes_next(
    program: Path, images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, said, _ = compressed(capsys, program, "--data", images, "--macs", "0.5", "--recipe", short, "-o", out)
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
    status, said, _ = compressed(
        capsys, program, "--data", images, "--macs", "0.6", "--static", "0.8", *options, "--json"
    )
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
    assert compressed(capsys, program, "--data", images, "--macs", "0.5", "--recipe", short, "-o", out)[0] == 0
    from edgevit.util.resources import shipped

    kept = (shipped("targets") / "x86-64-onnxruntime.toml").read_text().splitlines()
    kept = [line for line in kept if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))]
    target.write_text("\n".join(['name = "lenient"', "min_agreement = 0.0", "max_top1_drop = 1.0", *kept]))
    command = ["build", str(out / "program"), "--target", str(target), "--calibration", str(images), "--limit", "8"]
    assert main([*command, "-o", str(bundle)]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert all(claim["held"] for claim in manifest["claims"])


def test_following_the_model_alone_is_no_measurement_at_first(
    program: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that still is its teacher has no derivative; the result still is within the budget."""
    options = ["--unlabelled", "--macs", "0.55", "--static", "0.55", "-o", tmp_path / "out", "--json"]
    short = recipe(tmp_path / "few.toml", epochs_joint=2, epochs_recover=1)
    status, said, told = compressed(capsys, program, "--data", images, "--recipe", short, *options)
    assert status == 0, told
    made, was = load_program(tmp_path / "out" / "program").spec, dense().spec
    assert {b.kind for b in made.branches if not b.removed} == {"mhsa", "ffn"}
    got = total_macs(made) / total_macs(was)
    assert got <= 0.55
    assert got > 0.53 or f"warning: pruning leaves {got:.1%} of the MACs where 55.0% were asked for" in told


def test_memory_is_paid_by_pruning(
    images: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = saved(dense(depth=3, dim=64, heads=4, hidden=256), tmp_path / "wide")
    options = ["--data", images, "--recipe", short, "--json"]
    status, out, told = compressed(
        capsys, program, *options, "--memory", "150KB", "--macs", "0.35", "-o", tmp_path / "out"
    )
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
    status, out, told = compressed(capsys, program, *options, "--memory", "100MB")
    assert status == 0
    assert "all of tiny fits into 100000000 bytes on x86-64-onnxruntime: nothing is pruned for memory" in told
    result, said = strict_json.from_data(Trained, json.loads(out), []), list[str]()
    assert result is not None
    for bound, expected in ((95, 0), (89, 1)):
        small = replace(result.compressed, bound_bytes=bound)
        compare_memory(replace(result, compressed=small, memory_budget_bytes=100, static_budget=0.5), said.append)
        assert len(said) == expected
    assert "the memory bound is 89 of 100 bytes" in said[0] and "--static with more than 0.500" in said[0]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["--macs", "0.01"], errors.BudgetError, "ask for more than 0."),
        (["--macs", "0.5", "--static", "0.02"], errors.BudgetError, "ask for more than 0."),
        (["--memory", "9KB"], errors.BudgetError, "stem and head, which are not pruned, need"),
        (["--memory", "9KB", "--target", "host"], errors.BudgetError, "stem and head, which are not pruned, need"),
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
    status, _, text = compressed(capsys, program, *given)
    assert status == error.exit_code, text
    assert said in text
    assert text.count("\n") <= 3
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p != tmp_path / "out"] == []


def test_a_loss_that_is_no_number_names_its_step_and_what_is_good(
    program: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wild = tmp_path / "out", recipe(tmp_path / "wild.toml", epochs_joint=1, rate_recover=1e30)
    status, _, said = compressed(capsys, program, "--data", images, "--macs", "0.6", "--recipe", wild, "-o", out)
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
    assert compressed(capsys, *options, "--recipe", short)[0] == 0
    before = files(out)
    status, _, said = compressed(capsys, *options, "--recipe", short)
    assert (status, "--resume" in said) == (errors.OutputError.exit_code, True)
    other = recipe(tmp_path / "other.toml", epochs_joint=1, epochs_recover=1, clip=2.0)
    status, _, said = compressed(capsys, *options, "--recipe", other, "--resume")
    assert status == errors.TrainingError.exit_code
    assert "recipe clip was 1.0, is now 2.0" in said
    damaged = bytearray((out / "checkpoint.pt").read_bytes())
    assert files(out) == before
    damaged[len(damaged) // 2] ^= 255
    (out / "checkpoint.pt").write_bytes(damaged)
    status, _, said = compressed(capsys, *options, "--recipe", short, "--resume")
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


def test_tokens_merge_under_the_same_budget_and_the_end_says_what_adaptivity_is_worth(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, folder = saved(dense(depth=3), tmp_path / "deeper"), tmp_path / "run"
    numbers = recipe(tmp_path / "r.toml", epochs_joint=1, epochs_recover=1, gates="measured", gate_images=16)
    given = ("--tokens", "1:0-6@0.5", "--macs", "0.6", "--recipe", numbers, "-o", folder)
    status, out, err = compressed(capsys, program, "--data", images, *given)
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
    status, _, err = compressed(capsys, program, "--data", images, "--tokens", "1:9", "-o", tmp_path / "run")
    assert status == errors.BudgetError.exit_code and "9 tokens are merged after" in err
    assert not list((tmp_path / "run").glob("*"))


def test_a_plan_is_searched_once_and_trained(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = saved(dense(depth=3), tmp_path / "deeper"), tmp_path / "run"
    numbers = recipe(tmp_path / "r.toml", epochs_joint=1, epochs_recover=1, token_share=0.5)
    given = ("--data", images, "--tokens", "search", "--macs", "0.7", "--recipe", numbers, "-o", folder)
    status, _, err = compressed(capsys, program, *given)
    assert status == 0, err
    assert "looking for tokens to merge, down to 84% of the MACs" in err
    made, first = files(folder / "program"), load_program(folder / "program")
    planned = load_program(folder / "planned").spec
    assert [p.after for p in first.spec.merges] == [p.after for p in planned.merges] != []
    assert total_macs(planned) >= 0.8 * total_macs(dense(depth=3).spec)
    monkeypatch.setattr("edgevit.api.token_plan.search", None)
    assert compressed(capsys, program, *given, "--resume")[0] == 0
    assert files(folder / "program") == made
    assert compressed(capsys, program, *given)[0] == errors.OutputError.exit_code
    status, _, err = compressed(capsys, program, "--data", images, "--tokens", "search", "-o", tmp_path / "other")
    assert status == errors.BudgetError.exit_code and "nothing is to be saved" in err


def test_a_plan_that_reaches_the_budget_alone_has_nothing_to_learn_first(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1 learns what is pruned and gated; a recipe without it is allowed where nothing is."""
    program, folder = saved(dense(depth=3), tmp_path / "deeper"), tmp_path / "run"
    numbers = recipe(tmp_path / "r.toml", epochs_joint=0, epochs_recover=1)
    given = (program, "--data", images, "--tokens", "1:6", "--recipe", numbers, "-o", folder)
    status, _, told = compressed(capsys, *given, "--macs", "0.3")
    assert status == errors.TrainingError.exit_code and "epochs_joint is 0" in told
    status, _, told = compressed(capsys, *given, "--macs", "0.9")
    assert status == 0, told
    assert {row["stage"] for row in metrics(folder)} == {"1.0"} and metrics(folder)[0]["step"] == "1"
    made = load_program(folder / "program").spec
    assert made.merges and made.original is not None and not made.gated
    assert total_macs(made) < 0.9 * total_macs(dense(depth=3).spec)
    again = (folder / "program", "--data", images, "--recipe", numbers, "-o", tmp_path / "again")
    status, _, told = compressed(capsys, *again, "--macs", "0.9")
    assert status == 0 and "train the original instead, with --tokens 1:6" in told
    assert load_program(tmp_path / "again" / "program").spec.merges == made.merges
