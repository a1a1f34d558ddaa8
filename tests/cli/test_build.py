"""`edgevit build` as a user meets it: one clear message and its exit code for every wrong input."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit import errors
from edgevit.build.points import PointTime
from edgevit.cli import main
from edgevit.cli.build import _points
from edgevit.pipeline import Built
from edgevit.program.program import load_program, save_program
from edgevit.program.tokens import write_plan
from edgevit.schema.claims import Fraction
from edgevit.schema.points import OperatingPoint, PointName
from tests.bundles import sample_manifest
from tests.tiny import tiny_program

TARGET = "x86-64-onnxruntime"


def test_build_verify_and_report(
    program: Path, target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos), "-o", str(folder)]
    assert main(command) == 0
    assert f"Bundle: {folder}" in capsys.readouterr().out
    assert main(["verify", f"{folder}.zip", "--run"]) == 0
    assert main(command) == errors.OutputError.exit_code
    capsys.readouterr()
    assert main([*command, "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in answer["manifest"]["claims"]} == {"coverage", "parity", "skip", "bound", "accuracy"}
    assert answer["manifest"]["files"] == json.loads((folder / "manifest.json").read_text())["files"] != []


def test_a_bundle_has_the_name_it_is_given(program: Path, target: Path, photos: Path, tmp_path: Path) -> None:
    """Models of one architecture stay apart: in folders, when unpacked, and linked into one program."""
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main([*command, "--name", "door-bell"]) == 0
    data = json.loads((tmp_path / "out/door-bell-lenient/manifest.json").read_text())
    assert (data["name"], data["recipe"]["model"]) == ("door-bell-lenient", "tiny")
    assert "# door-bell-lenient\n" in (tmp_path / "out/door-bell-lenient/README.md").read_text()
    with zipfile.ZipFile(tmp_path / "out/door-bell-lenient.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"door-bell-lenient"}


@pytest.mark.parametrize("name", ["a b", "1st", "../x", "v1.2", "x" * 49, "ä"])
def test_a_name_that_cannot_be_one_is_refused_at_once(
    name: str, program: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", str(program), "--target", str(target), "--name", name]
    assert main(command) == errors.OutputError.exit_code
    assert "cannot be the name of a bundle and of its C library; allowed: a letter" in capsys.readouterr().err


def test_formats_and_budgets_are_the_users(
    program: Path, target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos), "-o", str(folder)]
    assert main([*command, "--formats", "onnx,ort", "--budget", "ram=0.001,flash=10,latency=5"]) == 0
    shown = capsys.readouterr().out
    assert (folder / "model.onnx").is_file() and (folder / "model.ort").is_file()
    assert "budget    NOT MET: " in shown and "budget    met: " in shown and "budget    not known: " in shown
    assert "point     balanced (effort 0)" in shown and "point     full" in shown
    data = json.loads((folder / "manifest.json").read_text())
    assert data["target"]["ram_mb"] == 0.001 and data["target"]["formats"] == ["onnx", "ort"]
    readme = (folder / "README.md").read_text()
    assert "| balanced | 0 |" in readme and "not met" in readme and "--effort fastest" in readme
    assert main([*command, "--force"]) == 0
    assert not (folder / "model.ort").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--formats", "onnx,ir"], "formats: got"),
        (["--budget", "ram=0"], "ram: got '0', allowed: a number above 0"),
        (["--budget", "speed=3"], "allowed: ram=NUMBER"),
    ],
)
def test_formats_and_budgets_that_cannot_be_are_refused_at_once(
    program: Path, target: Path, option: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(program), "--target", str(target), "--dry-run", *option]) == 14
    assert said in capsys.readouterr().err


def test_a_saved_program_has_its_own_word_for_replacing(
    program: Path, target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, kept = tmp_path / "docs", tmp_path / "kept"
    docs.mkdir()
    (docs / "thesis.tex").write_text("years")
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos), "-o", str(tmp_path / "o")]
    for word in ("--force", "--replace-program"):
        assert main([*command, "--save-program", str(docs), word]) == errors.OutputError.exit_code
        assert not (tmp_path / "o").exists() and (docs / "thesis.tex").read_text() == "years"
    assert "in the way: thesis.tex" in capsys.readouterr().err
    assert main([*command, "--save-program", str(kept)]) == 0
    assert main([*command, "--save-program", str(kept), "--force"]) == errors.OutputError.exit_code
    assert "--replace-program" in capsys.readouterr().err
    assert main([*command, "--save-program", str(kept), "--force", "--replace-program"]) == 0


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
    assert main(["verify", str(folder), "--run"]) == 0
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


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "{program}", "--target", "{tmp}/pipe.toml"], 14, "it is a pipe"),
        (["build", "{program}", "--target", "{tmp}/deep.toml"], 14, "nested 100000 deep, allowed: 64 levels"),
        (["build", "{program}", "--target", TARGET, "--calibration", "{tmp}/zero.jpg"], 15, "it is a device"),
        (["build", "{program}", "--target", TARGET, "--calibration", "{tmp}/" + "n" * 300], 15, "File name too long"),
        (["build", "{program}", "--target", TARGET, "--eval", "{tmp}/bad.tar"], 15, "cannot be read as an"),
        (["build", "{program}", "--target", TARGET, "--labels", "{tmp}/pipe.toml"], 15, "it is a pipe"),
        (["build", "{program}", "--target", TARGET, "--classes", "9" * 5000], 15, "allowed: class numbers"),
        (["build", "{program}", "--target", TARGET, "--seed", "-1"], 2, "0<=x<="),
        (["build", "{program}", "--target", TARGET, "--prune", "nan"], 2, "no finite number"),
        (["compress", "{program}", "--data", "{tmp}/zero.jpg"], 15, "it is a device"),
        (["compress", "{program}", "--data", "{tmp}/bad.tar", "--recipe", "{tmp}/deep.toml"], 20, "nested 100000"),
        (["compress", "{program}", "--data", "{tmp}/bad.tar", "--recipe", "{tmp}/pipe.toml"], 20, "it is a pipe"),
        (["compress", "{program}", "--data", "{tmp}/bad.tar", "--threads", "1000000"], 2, "1<=x<=1024"),
        (["profile", "{tmp}/none", "--threads", "1000000"], 2, "1<=x<=1024"),
        (["profile", "{tmp}/none", "--runs", "1" * 30], 2, "1<=x<=1000000"),
        (["profile", "{tmp}/none", "--timeout", "1" * 30], 2, "1<=x<=2592000"),
        (["verify", "{tmp}/none", "--run", "--threads", "0"], 2, "1<=x<=1024"),
    ],
)
def test_hostile_input_is_one_message_of_its_kind(
    arguments: list[str], code: int, said: str, program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    (tmp_path / "bad.tar").write_bytes(b"x" * 600)
    assert main([a.format(program=program, tmp=tmp_path) for a in arguments]) == code
    told = capsys.readouterr().err
    assert said in told
    assert len(told) < 8000 and "Traceback" not in told


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


def test_a_hub_folder_is_built_and_what_was_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.checkpoint_forms import FORMS
    from benchmarks.checkpoints import subjects

    folder = tmp_path / "hub"
    folder.mkdir()
    FORMS["transformers' folder"](next(s for s in subjects(None) if s.name.startswith("deit")), folder)
    (folder / "preprocessor_config.json").unlink()
    command = ["build", str(folder), "--target", "x86-64-onnxruntime", "--dry-run", "--image-size", "96,64"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "edgevit: preprocessing assumed of deit" in told
    assert "position embedding resampled from 4 x 4 to 6 x 4 patches" in told
    assert main([*command, "--ema"]) == errors.WeightsError.exit_code
    assert "omit --ema" in capsys.readouterr().err


def test_names_of_imagenet_are_taken_by_name_and_counted(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(program), "--target", "x86-64-onnxruntime", "--dry-run", "--labels", "imagenet-1k"]
    assert main(command) == errors.ImagesError.exit_code
    assert "imagenet-1k holds 1000 class names" in capsys.readouterr().err


def test_the_bundle_states_licence_and_credit_as_the_user_did(
    program: Path, target: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["build", str(program), "--target", str(target), "--calibration", str(photos), "-o"]
    assert main([*command, str(tmp_path / "out"), "--license", "CC-BY-4.0", "--credit", "A. Person"]) == 0
    text = (tmp_path / "out" / "licences" / "weights.txt").read_text()
    assert "license: CC-BY-4.0" in text and "credit: A. Person" in text and "not stated" not in text


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
    assert "--eval is for top-1, and tiny does not decide between classes; omit --eval" in said
    assert "Quantizing" not in said and not (tmp_path / "o").exists()


@pytest.mark.parametrize("options", [["--tokens", "1:4,2:3"], ["--macs", "0.8"]])
def test_tokens_are_merged_and_the_report_says_where(
    options: list[str], target: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_program(tiny_program(depth=4), tmp_path / "dense")
    folder = tmp_path / "out"
    command = ["build", str(tmp_path / "dense"), "--target", str(target), "--calibration", str(photos), *options]
    assert main([*command, "-o", str(folder), "--save-program", str(tmp_path / "merged"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert all(claim["held"] is not False for claim in manifest["claims"])
    plan = write_plan(load_program(tmp_path / "merged").spec)
    assert plan and f"tokens merged at {plan}" in (folder / "report.html").read_text(encoding="utf-8")
    assert (manifest["recipe"]["tokens"], manifest["recipe"]["macs"]) == (
        ("1:4,2:3", 1.0) if "--tokens" in options else ("", 0.8)
    )
    assert main(["verify", f"{folder}.zip", "--run"]) == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--tokens", "4"], 17, "expected BLOCK:COUNT"),
        (["--tokens", "1:90"], 17, "90 tokens are merged after 'b00_mhsa', where there are 16; allowed: 1 to 8"),
        (["--tokens", "1:4", "--macs", "0.7"], 2, "give one of them"),
    ],
)
def test_tokens_that_cannot_be_merged_are_refused_at_once(
    options: list[str], code: int, said: str, program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(program), "--target", TARGET, "-o", str(tmp_path / "out"), *options]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino", "x86-64-v3-tvm"])
def test_every_runtime_merges_where_pruning_is_not_asked_for(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_program(tiny_program(depth=4, hidden=64), tmp_path / "dense")
    size = []
    for options in (["--macs", "0.7"], ["--static", "0.7"]):
        command = ["build", str(tmp_path / "dense"), "--target", target, "--dry-run", "--json", *options]
        assert main(command) == 0
        told = capsys.readouterr()
        assert not told.err
        size.append(json.loads(told.out)["model_bytes"])
    assert size[0] > size[1]  # merged tokens have no weights


NAMED: tuple[tuple[float, PointName], ...] = ((-2.0, "fastest"), (-2.0, "fast"), (0.0, "balanced"))


def test_points_tell_what_they_cost_and_take_and_which_are_one() -> None:
    share = Fraction(hits=9, images=10, value=0.9, low=0.6, high=1.0)
    points = tuple(
        OperatingPoint(effort=effort, name=name, macs=2e6, worst_macs=2, branches=4.0, images=10, agreement=share)
        for effort, name in NAMED
    )
    manifest = replace(sample_manifest(tiny_program(gated=True)), points=points)
    times = (PointTime(effort=-2.0, mean_ms=1.25, most_ms=1.5),)
    built = Built(folder=Path("b"), archive=Path("b.zip"), manifest=manifest, times=times)
    assert list(_points(built)) == [
        "fastest (effort -2): 2 M MACs, 1.25 ms (at most 1.50), 90.0% as the float model",
        "fast (effort -2): 2 M MACs, 1.25 ms (at most 1.50), 90.0% as the float model",
        "balanced (effort 0): 2 M MACs, 90.0% as the float model",
        "ms: CPU time on this machine, every image run once; edgevit profile measures a device",
        "fastest and fast are one point: effort leaves no cheaper one that keeps as many answers.",
    ]
