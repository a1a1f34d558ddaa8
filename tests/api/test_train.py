"""A training run as a whole: killed and resumed, on labels and without, on every family of models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.compress.budgets import Budgets
from edgevit.compress.gate.judge import answers
from edgevit.compress.training import checkpoint
from edgevit.compress.training.recipe import to_toml
from edgevit.compress.usdc.inputs import Training, split_data
from edgevit.compress.usdc.resume import CHECKPOINT, program_of, refuse_foreign
from edgevit.compress.usdc.run import COLUMNS
from edgevit.errors import ImagesError, OutputError, TrainingError
from edgevit.images.labelled import LabelledSet, open_labelled
from edgevit.pipeline import train
from edgevit.program.macs import stem_macs, total_macs
from edgevit.program.original import weights_digest
from edgevit.program.program import Program, expected_shapes, load_program
from edgevit.util import strict_json
from edgevit.util.ownership import LOG
from edgevit.util.strays import stray_name
from tests.compressing import (
    CLASSES,
    HALF,
    SHORT,
    dense,
    ended,
    files,
    job,
    metrics,
    photos,
    recipe,
    saved,
    started,
    steps_logged,
    wait_for,
)
from tests.tiny import tiny_program, tiny_spec, tiny_weights


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def data(images: Path) -> LabelledSet:
    return open_labelled(images)


def test_kill_and_resume_is_as_if_nothing_happened(images: Path, tmp_path: Path) -> None:
    """SIGKILL in both stages, between checkpoints; log and Program are those of the undisturbed run, bit for bit."""
    program = saved(dense(), tmp_path / "dense")
    numbers = recipe(tmp_path / "recipe.toml", checkpoint_seconds=0.01, groups="random 1 5")
    command = ["compress", str(program), "--data", str(images), "--macs", "0.5", "--recipe", str(numbers)]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert ended(started([*command, "-o", str(undisturbed)], tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    total = steps_logged(undisturbed)
    assert total == 16
    stages = {row["stage"] for row in metrics(undisturbed)}
    assert stages == {"0.0", "1.0"}
    rng = np.random.default_rng()
    points = sorted(int(n) for n in rng.choice(np.arange(1, total), 4, replace=False))
    points[0], points[-1] = min(points[0], 6), max(points[-1], 10)  # one in each stage at least
    for point in points:
        process = started([*command, "-o", str(disturbed), "--resume"], tmp_path / "log")
        wait_for(lambda point=point: steps_logged(disturbed) >= point, process)  # type: ignore[misc]
        process.kill()
        process.join()
        assert process.exitcode == -9, f"killed at {points}: {(tmp_path / 'log').read_text()}"
    last = started([*command, "-o", str(disturbed), "--resume"], tmp_path / "log")
    assert ended(last) == 0, (tmp_path / "log").read_text()
    assert metrics(disturbed) == metrics(undisturbed), f"killed at {points}"
    assert files(disturbed / "program") == files(undisturbed / "program"), f"killed at {points}"
    assert load_program(undisturbed / "program").spec.gated


def test_a_finished_run_can_be_resumed_and_stays(data: LabelledSet, tmp_path: Path) -> None:
    this = job(data, tmp_path / "run")
    train(this)
    before = files(tmp_path / "run" / "program"), metrics(tmp_path / "run")
    with pytest.raises(OutputError, match="--resume"):
        train(this)
    train(this, resume=True)
    assert (files(tmp_path / "run" / "program"), metrics(tmp_path / "run")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda j: replace(j, recipe=replace(j.recipe, rate_recover=1e-4)),
            "recipe rate_recover was 0.0003, is now 0.0001",
        ),
        (lambda j: replace(j, recipe=replace(j.recipe, seed=1)), "recipe seed was 0, is now 1"),
        (lambda j: replace(j, recipe=replace(j.recipe, augment=replace(j.recipe.augment, hflip=0.0))), "augment.hflip"),
        (lambda j: replace(j, dense=dense(seed=1)), "model was weights"),
        (lambda j: replace(j, teacher=None), "is now none"),
        (lambda j: replace(j, budgets=Budgets(expected=0.5, static=0.8)), "static MACs was 0.7, is now 0.8"),
        (lambda j: replace(j, notes={"memory": "3 bytes"}), "memory was not given, is now 3 bytes"),
    ],
)
def test_resuming_with_other_inputs_is_refused(
    finished: Path, change: Callable[[Training], Training], said: str, data: LabelledSet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = files(folder)
    with pytest.raises(TrainingError, match="belongs to a run with other inputs") as caught:
        train(change(job(data, folder)), resume=True)
    assert said in str(caught.value)
    assert files(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"steps": torch.zeros(2)}},
        {"facts": torch.zeros(2)},
        {"stage": torch.zeros(2)},
        {"spec": 3},
        {"state": {"step": torch.ones(1)}},
    ],
)
def test_a_checkpoint_of_other_types_is_refused(
    finished: Path, change: dict[str, object], data: LabelledSet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint.save(folder / CHECKPOINT, checkpoint.load(folder / CHECKPOINT) | change)
    with pytest.raises(TrainingError, match="is no checkpoint of `edgevit compress`"):
        train(job(data, folder), resume=True)


@pytest.fixture(scope="module")
def finished(data: LabelledSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoint of its first stage."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(job(data, folder))
    return folder


def test_the_log_begins_as_it_is_known_by() -> None:
    assert ",".join(("step", *COLUMNS)).startswith(LOG.decode())


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["metrics.csv", "recipe.toml", "result.json", "program/thesis.tex"])
def test_files_of_others_in_its_folder_are_never_replaced(
    name: str, resume: bool, data: LabelledSet, tmp_path: Path
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("step,loss\n0,1.5\n")
    with pytest.raises(OutputError, match=r"move it away"):
        train(job(data, tmp_path / "run"), resume=resume)
    assert files(tmp_path / "run") == {name: path.read_bytes()}


def test_a_run_that_was_killed_before_its_first_checkpoint_can_start_anew(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "recipe.toml").write_text(to_toml(SHORT))
    (folder / stray_name("checkpoint.pt", process=1)).write_bytes(b"half")
    refuse_foreign(folder)
    assert {p.name for p in folder.iterdir()} - {"tensorboard"} == {
        *("checkpoint.pt", "metrics.csv", "program", "recipe.toml")
    }


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_recipe_that_is_no_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "recipe.toml")
    with pytest.raises(OutputError, match="is not what a training run leaves there"):
        refuse_foreign(tmp_path)


def test_resuming_with_other_images_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    other = open_labelled(photos(tmp_path / "photos", each=21))
    with pytest.raises(TrainingError, match="data was 80 images, digest .*, is now 84 images"):
        train(job(other, tmp_path / "run"), resume=True)


def test_workers_and_the_time_between_checkpoints_may_change(finished: Path, data: LabelledSet, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    train(job(data, tmp_path / "run", recipe=replace(SHORT, checkpoint_seconds=5.0)), resume=True)


def test_the_program_tells_how_it_was_made(finished: Path, data: LabelledSet) -> None:
    origin = load_program(finished / "program").spec.origin
    assert origin["source"] == "generated"
    assert (origin["compressed_expected_macs"], origin["compressed_static_macs"]) == ("0.5", "0.7")
    assert origin["compressed_data_sha256"] == data.digest
    assert str(Path(data.source).parent) not in str(origin)
    original = load_program(finished / "program").spec.original
    assert original is not None and original.weights_sha256 == weights_digest(dense())
    assert original.steps[0].startswith(
        f"trained to 50% of its MACs expected and 70% loaded, on {Path(data.source).name}"
    )


def test_budgets_are_met_on_the_images_that_set_them(finished: Path, data: LabelledSet) -> None:
    program, whole = load_program(finished / "program"), total_macs(dense().spec)
    assert total_macs(program.spec) <= 0.7 * whole
    held, rest = split_data(job(data, finished))
    assert len(held.images) == 8
    assert len(rest) == len(data) - 8
    # With 8 images and 4 gates the spent MACs come in steps.
    assert answers(program, held.images).macs / whole == pytest.approx(0.5, abs=0.1)


def test_pruning_alone_and_gates_alone(data: LabelledSet, tmp_path: Path) -> None:
    static = train(job(data, tmp_path / "static", budgets=Budgets(expected=0.7, static=0.7)))
    assert not static.spec.gated
    assert total_macs(static.spec) <= 0.7 * total_macs(dense().spec)
    dynamic = train(job(data, tmp_path / "dynamic", budgets=Budgets(expected=0.6, static=1.0)))
    assert all(b.gate is not None and b.units == b.units_total for b in dynamic.spec.branches)


def test_without_budgets_it_is_fine_tuning(data: LabelledSet, tmp_path: Path) -> None:
    """One stage, the structure as it was, and better than before."""
    tuned = replace(SHORT, epochs_recover=10, rate_recover=3e-3, ema=0.0, groups="batch")
    found = train(job(data, tmp_path / "run", teacher=None, budgets=Budgets(expected=1.0, static=1.0), recipe=tuned))
    assert found.spec.branches == dense().spec.branches
    assert found.spec.original is None  # nothing was taken away: what it was before is no measure of it
    assert {row["stage"] for row in metrics(tmp_path / "run")} == {"1.0"}
    held, _ = split_data(job(data, tmp_path / "other"))
    assert answers(found, held.images).top1(held.labels) > max(0.6, answers(dense(), held.images).top1(held.labels))


@pytest.mark.parametrize("tokens", [0.0, 0.9])
def test_most_epochs_may_see_small_images_in_a_few_views(tokens: float, data: LabelledSet, tmp_path: Path) -> None:
    """Budgets are those of the model's own size, and the teacher is asked about each view once."""
    r = replace(SHORT, small=16, full_epochs=1, views=2, epochs_joint=2, epochs_recover=3, tokens=tokens)
    found = train(job(data, tmp_path / "run", recipe=r, teacher_cache=tmp_path / "teacher"))
    steps = 72 // r.batch
    assert len(list((tmp_path / "teacher").iterdir())) == 2 * steps * (2 if tokens else 1)
    assert len(metrics(tmp_path / "run")) == 5 * steps
    held, _ = split_data(job(data, tmp_path / "other"))
    whole = total_macs(dense().spec)
    assert total_macs(found.spec) <= HALF.static * whole
    assert answers(found, held.images).macs <= (HALF.expected + 0.05) * whole
    assert (
        found.spec.image == dense().spec.image and found.weights["stem.pos"].shape == dense().weights["stem.pos"].shape
    )


def test_token_streams_are_in_the_loss_of_both_stages(data: LabelledSet, tmp_path: Path) -> None:
    """With nothing but them to follow, a model that is its own teacher loses nothing until something is taken away."""
    whole, alone = Budgets(expected=1.0, static=1.0), replace(SHORT, tokens=1.0, rate_recover=1e-9)
    train(job(data, tmp_path / "same", recipe=alone, budgets=whole))
    assert max(float(row["loss"]) for row in metrics(tmp_path / "same")) < 1e-5
    for tokens in (0.0, 1.0):
        train(job(data, tmp_path / str(tokens), recipe=replace(SHORT, tokens=tokens)))
    plain, followed = (
        {row["stage"]: float(row["loss"]) for row in metrics(tmp_path / name)} for name in ("0.0", "1.0")
    )
    assert set(plain) == {"0.0", "1.0"} and all(abs(plain[s] - followed[s]) > 0.01 for s in plain)


def test_budgets_need_the_stage_that_meets_them(data: LabelledSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="epochs_joint is 0"):
        train(job(data, tmp_path / "run", recipe=replace(SHORT, epochs_joint=0)))


def t2t(kind: str) -> Program:
    """A T2T-ViT of two blocks whose stem is small."""
    spec = tiny_spec(classes=CLASSES, patch=8, image=(32, 32), depth=2)
    stem = replace(spec.stem, kind=kind, patch=16, token_dim=8)  # type: ignore[arg-type]
    spec = replace(spec, stem=stem)
    weights = tiny_weights(spec)
    for name in expected_shapes(spec):
        if name.endswith(".w"):
            weights[name] *= 0.5
    return Program(spec=spec, weights=weights)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"recipe": replace(SHORT, batch=80)}, TrainingError, "leaves 72 images to train on, a batch takes 80"),
        ({"recipe": replace(SHORT, batch=64, accumulate=3)}, TrainingError, "a multiple of 3"),
        (
            {"recipe": replace(SHORT, small=32)},
            TrainingError,
            "small is 32, allowed for tiny .* less than 32",
        ),
        ({"recipe": replace(SHORT, small=20)}, TrainingError, "whole patches of 8 pixels both ways"),
        (
            {"recipe": replace(SHORT, small=16), "dense": t2t("t2t_transformer")},
            TrainingError,
            "from overlapping windows",
        ),
        ({"dense": tiny_program(classes=9)}, ImagesError, "no image of 5 of 9 classes"),
        ({"dense": tiny_program(classes=3)}, ImagesError, "labels out of range: got 3"),
    ],
)
def test_data_that_does_not_do_is_refused_before_training(
    data: LabelledSet, tmp_path: Path, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        train(job(data, tmp_path / "run", **changed))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("kind", ["t2t_performer", "t2t_transformer"])
def test_t2t_trains_and_its_stem_stays_whole(kind: str, data: LabelledSet, tmp_path: Path) -> None:
    program = t2t(kind)
    spec = program.spec
    floor = stem_macs(spec) / total_macs(spec)
    budgets = Budgets(expected=floor + 0.6 * (1 - floor), static=floor + 0.8 * (1 - floor))
    r = replace(SHORT, tokens=0.5)
    found = train(job(data, tmp_path / "run", program, budgets=budgets, recipe=r))
    assert found.spec.stem == spec.stem
    assert found.spec.gated
    assert total_macs(found.spec) <= budgets.static * total_macs(spec)
    stem = {name for name in program.weights if name.startswith("stem.attention")}
    features = {name for name in stem if name.endswith(".w")}
    assert bool(features) == (kind == "t2t_performer")
    changed = {name for name in stem if not np.array_equal(found.weights[name], program.weights[name])}
    assert not changed & features
    np.testing.assert_array_equal(found.weights["stem.pos"], program.weights["stem.pos"])
    assert {name for name in stem - features if name.endswith("weight")} <= changed


def test_a_distilled_model_trains_with_both_tokens(data: LabelledSet, tmp_path: Path) -> None:
    program = dense(prefix=2, head_prefix=2)
    found = train(job(data, tmp_path / "run", program))
    assert found.spec.gated
    assert found.spec.head.prefix == 2
    before, after = program.weights["head.weight"], found.weights["head.weight"]
    assert after.shape == (64, CLASSES)
    assert all((before[half] != after[half]).any() for half in (slice(0, 32), slice(32, 64)))
    skips = [b for b in found.spec.branches if b.skip]
    assert {found.weights[f"{b.name}.skip"].shape for b in skips} == {(3, 32)}


def test_without_class_token_gates_read_the_mean(data: LabelledSet, tmp_path: Path) -> None:
    found = train(job(data, tmp_path / "run", dense(prefix=0)))
    assert {b.gate.pool for b in found.spec.branches if b.gate} == {"mean"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (strict_json.dumps(tiny_spec(dim=60_000, heads=2, hidden=60_000)), "weights, and it holds 8; it is damaged"),
        (strict_json.dumps(tiny_spec(classes=10**9)), "head.classes is 1000000000"),
        ("[" * 100_000, "nests too deep"),
        ('{"name": 1' + "0" * 400 + "}", "an integer of 401 digits"),
        ("{}", "missing key 'name'"),
    ],
)
def test_a_checkpoint_of_a_model_that_it_does_not_hold_is_refused(spec: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        program_of({"spec": spec, "state": {"w": torch.zeros(8)}})
