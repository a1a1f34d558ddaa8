from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from edgevit import errors
from edgevit.bundle import runner
from edgevit.images import headers
from edgevit.images.image_set import RESIZED_PIXELS_LIMIT, prepare
from edgevit.program.spec import ImageSpec
from edgevit.schema.manifest import OutputContract
from edgevit.schema.points import OperatingPoint
from edgevit.util import limits
from tests.bundles import rehash, rewrite, sample_bundle
from tests.tiny import tiny_images, tiny_spec

SPEC = ImageSpec(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, interpolation="bicubic")
# Whatever the runner imports beyond the standard library must be one of these, or come with them.
FORBIDDEN = ("torch", "timm", "onnx", "safetensors", "click", "rich", "edgevit")


def run(folder: Path, *arguments: str, lacking: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in (*FORBIDDEN, *lacking))
    path = str(folder / "runner" / "run.py")
    call = f"sys.argv = {[path, *arguments]!r}; runpy.run_path({path!r}, run_name='__main__')"
    code = f"import runpy, sys; {blocked}; {call}"
    return subprocess.run([sys.executable, "-I", "-W", "error", "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = [f"thing {i}" for i in range(10)]
    return sample_bundle(tmp_path_factory.mktemp("bundle") / "tiny", runtime=request.param, labels=labels)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(tiny_images(tiny_spec(image=(48, 64)))[0]).save(path)
    return path


@pytest.mark.parametrize("size", [(32, 32), (35, 35), (64, 48), (48, 64), (33, 500), (500, 33), (20, 20), (35, 36)])
@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, width=48), replace(SPEC, crop_pct=1.0), replace(SPEC, interpolation="bilinear")]
)
def test_preprocessing_is_the_builds_own_bit_for_bit(size: tuple[int, int], spec: ImageSpec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    np.testing.assert_array_equal(runner.prepare(picture, asdict(spec))[0], prepare(picture, spec))


def test_in_a_folder_that_is_called_by_any_bytes_it_runs_or_says_why_not(
    folder: Path, photo: Path, tmp_path: Path
) -> None:
    done = run(shutil.copytree(folder, tmp_path / os.fsdecode(b"b\xff")), str(photo))
    refused = done.returncode == 18 and done.stderr.endswith("opens no path that is not UTF-8; move the bundle\n")
    openvino = (folder / "model" / "model.xml").exists()
    assert done.returncode == 0 if openvino else refused, done.stderr


def test_it_classifies_an_image_with_labels_gates_and_time(folder: Path, photo: Path) -> None:
    done = run(folder, str(photo), "--json", "--top", "3")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    probabilities = [row["probability"] for row in answer["top"]]
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 3
    assert answer["top"][0]["label"] == f"thing {answer['top'][0]['class']}"
    assert len(answer["gates"]) == 4 and answer["milliseconds"] > 0
    text = run(folder, str(photo)).stdout
    assert f"{sum(answer['gates'])} of 4 branches ran" in text and answer["top"][0]["label"] in text


def test_the_time_is_a_programs_own_where_it_tells_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What starting it took, and handing an image over, is no time of the model."""
    manifest = json.loads((folder / "manifest.json").read_text())
    asked = argparse.Namespace(effort=0.0, top=1, json=True)

    def started(image: Any, effort: float) -> list[Any]:
        runner.TOLD["milliseconds"] = 12.5
        return [np.zeros((1, 10), dtype=np.float32), np.ones(4, dtype=np.uint8)]

    monkeypatch.setattr(runner, "TOLD", {})
    monkeypatch.setattr(runner, "ROOT", folder)
    runner.classify(manifest, started, Path("a.png"), np.zeros((1, 32, 32, 3), dtype=np.uint8), asked)
    assert json.loads(capsys.readouterr().out)["milliseconds"] == 12.5


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_terminal_of_ascii_gets_escapes(environment: dict[str, str], photo: Path, tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle", labels=[f"tête {i} 写" for i in range(10)])
    command = [sys.executable, str(folder / "runner" / "run.py"), str(photo)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert rb"t\xeate " in done.stdout and rb" \u5199" in done.stdout and done.stdout.isascii()
    assert "tête" in run(folder, str(photo)).stdout


def test_a_file_name_that_is_no_text_is_printed(folder: Path, photo: Path) -> None:
    odd = photo.rename(photo.with_name(os.fsdecode(b"caf\xe9.png")))
    done = run(folder, str(odd))
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in done.stdout


def test_one_class_has_a_score_and_no_probability(photo: Path, tmp_path: Path) -> None:
    folder = sample_bundle(tmp_path / "bundle", classes=1)
    row = json.loads(run(folder, str(photo), "--json").stdout)["top"][0]
    assert row["probability"] is None and isinstance(row["score"], float)
    text = run(folder, str(photo)).stdout
    assert "%" not in text and f"{row['score']:.3f}" in text


def test_features_are_no_classes(photo: Path, tmp_path: Path) -> None:
    outputs = (
        OutputContract(name="logits", dtype="float32", shape=(1, 10), meaning="features", kind="features"),
        OutputContract(name="gates", dtype="uint8", shape=(4,), meaning="1 = the branch ran", kind="gates"),
    )
    folder = sample_bundle(tmp_path / "bundle", changes={"outputs": outputs})
    answer = json.loads(run(folder, str(photo), "--json").stdout)
    assert len(answer["features"]) == 10 and "top" not in answer
    text = run(folder, str(photo)).stdout
    assert "10 features, no classes" in text and "%" not in text


def test_files_that_are_no_images_are_named_and_the_others_run(folder: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "float.tif")
    done = run(folder, *(str(tmp_path / name) for name in ("gone.jpg", "bad.jpg", "float.tif", photo.name)))
    assert done.returncode == 15
    said = done.stderr.splitlines()
    assert len(said) == 3 and "No such file" in said[0] and "cannot identify" in said[1] and "float values" in said[2]
    assert f"{photo}  " in done.stdout


def test_only_files_of_images_that_fit_are_read(folder: Path, photo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with (tmp_path / "big.jpg").open("wb") as file:
        file.truncate(3 << 30)
    Image.new("L", (70_000, 9)).save(tmp_path / "wide.png")
    Image.new("L", (1, 65_000)).save(tmp_path / "strip.png")
    odd = tmp_path / "\x1b[31m\x9b.jpg"
    odd.write_bytes(b"")
    names = ("pipe.jpg", "zero.jpg", "big.jpg", "wide.png", "strip.png", odd.name, photo.name)
    done = run(folder, *(str(tmp_path / name) for name in names))
    assert done.returncode == 15
    said = done.stderr.splitlines()
    told = ("only regular", "only regular", "allowed: 268435456", "70000 x 9", "no shape", "identify")
    for line, part in zip(said, told, strict=True):
        assert part in line
    assert "\\u001b[31m\\u009b.jpg" in said[-1] and "\x1b" not in done.stderr
    assert f"{photo}  " in done.stdout


def test_limits_are_the_builds_own() -> None:
    known = runner.IMAGE_BYTES, runner.IMAGE_PIXELS, runner.IMAGE_SIDE, runner.IMAGE_SCANS, runner.MOST_THREADS
    table = limits.IMAGE_BYTES, limits.IMAGE_PIXELS, limits.PICTURE_SIDE, limits.IMAGE_SCANS, limits.THREADS
    assert known == tuple(limit.value for limit in table)
    known = runner.RUN_SECONDS, runner.RUN_BYTES, runner.RUN_EXPANSION, runner.RUN_THREAD_BYTES, runner.RUN_BOUND_BYTES
    names = ("SECONDS", "BYTES", "EXPANSION", "THREAD_BYTES", "BOUND_BYTES")
    assert known == tuple(getattr(limits, f"RUN_{name}").value for name in names)
    assert runner.NO_MEMORY == errors.NO_MEMORY and limits.DOCUMENT_BYTES.value == runner.MANIFEST_BYTES
    parts = runner.IMAGE_PARTS, runner.PPM_HEADER_BYTES
    assert parts == (limits.IMAGE_PARTS.value, limits.PPM_HEADER_BYTES.value) and headers.SIZED == runner.SIZED
    assert runner.RESIZED_PIXELS == RESIZED_PIXELS_LIMIT


def test_labels_do_not_steer_the_terminal(photo: Path, tmp_path: Path) -> None:
    labels = ["\x1b]0;owned\x07\x9b2J\n\u202e"] * 10
    bundle = sample_bundle(tmp_path / "odd", runtime="onnxruntime", labels=labels)
    text = run(bundle, str(photo)).stdout
    assert "\\u001b]0;owned\\u0007\\u009b2J\\u000a\\u202e" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e"}


@pytest.mark.parametrize("arguments", ["--threads 1000000", "--threads 0", "--threads -1", "--top 0"])
def test_numbers_out_of_range_are_refused(arguments: str, folder: Path, photo: Path) -> None:
    done = run(folder, str(photo), *arguments.split())
    assert done.returncode == 2 and "--threads is 1 to 1024, --top 1 or more" in done.stderr


def test_a_manifest_of_too_many_threads_is_refused(photo: Path, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "odd", runtime="onnxruntime")
    data = json.loads((bundle / "manifest.json").read_text())
    rewrite(bundle, {**data, "target": {**data["target"], "threads": 10**6}})
    done = run(bundle, str(photo))
    assert done.returncode == 19 and "1000000 threads, allowed: 1 to 1024" in done.stderr


def test_the_contract_says_what_is_taken_of_a_picture(folder: Path) -> None:
    contract = json.loads((folder / "manifest.json").read_text())["input"]
    assert contract["preprocessing"]["orientation"] == "ignore" and contract["preprocessing"]["crop_mode"] == "center"
    assert "without alpha" in contract["pixels"] and "EXIF orientation" in contract["pixels"]


@pytest.mark.parametrize("word", ["-inf", "-1e3", "-Infinity", "-.5"])
def test_an_effort_below_zero_is_no_option(word: str) -> None:
    assert runner.joined(["a.png", "--effort", word, "--json"]) == ["a.png", f"--effort={word}", "--json"]
    assert runner.joined(["--effort", "--json"]) == ["--effort", "--json"]


def test_an_effort_of_minus_infinity_closes_every_branch(folder: Path, photo: Path) -> None:
    done = run(folder, str(photo), "--effort", "-inf", "--json")
    assert done.returncode == 0, done.stderr
    assert not any(json.loads(done.stdout)["gates"])


def test_effort_opens_and_closes_every_branch(folder: Path, photo: Path) -> None:
    gates = {
        e: json.loads(run(folder, str(photo), "--json", f"--effort={e}").stdout)["gates"] for e in ("1e30", "-inf")
    }
    assert gates == {"1e30": [1, 1, 1, 1], "-inf": [0, 0, 0, 0]}


POINTS = (
    OperatingPoint(effort=-1e30, name="fastest", macs=1.0, worst_macs=1, branches=0.0, images=1),
    OperatingPoint(effort=0.5, macs=2.0, worst_macs=2, branches=2.0, images=1),
    OperatingPoint(effort=1e30, name="full", macs=4.0, worst_macs=4, branches=4.0, images=1),
)


def test_an_operating_point_is_named_by_effort(photo: Path, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "points", changes={"points": POINTS})
    gates = [json.loads(run(bundle, str(photo), "--json", "--effort", n).stdout)["gates"] for n in ("fastest", "full")]
    assert gates == [[0, 0, 0, 0], [1, 1, 1, 1]]
    done = run(bundle, str(photo), "--effort", "warp")
    assert done.returncode == 2 and done.stdout == ""
    assert "no operating point 'warp': it has fastest, full; --effort takes a number too" in done.stderr


def test_what_runs_the_same_for_every_image_takes_no_effort(photo: Path, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "fixed", gated=False, changes={"effort": None})
    for effort in ("1", "-inf", "fast"):
        done = run(bundle, str(photo), "--effort", effort)
        assert done.returncode == 2 and "takes no effort; omit --effort" in done.stderr
    assert run(bundle, str(photo), "--effort", "0").returncode == 0


@pytest.mark.parametrize(("effort", "said"), [("fast", "no operating point 'fast': it has none"), ("nan", "got nan")])
def test_an_effort_that_does_not_exist_is_one_error(folder: Path, photo: Path, effort: str, said: str) -> None:
    done = run(folder, str(photo), "--effort", effort)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_another_version_of_the_runtime_is_refused_unless_asked_for(photo: Path, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "old", changes={"tools": {"edgevit": "0.1.0", "onnxruntime": "1.30.2"}})
    done = run(bundle, str(photo))
    assert done.returncode == 18 and done.stdout == ""
    assert "with 1.30.2" in done.stderr and "requirements.txt" in done.stderr and "--any-version" in done.stderr
    assert run(bundle, str(photo), "--any-version").returncode == 0
    assert "onnxruntime==1.30.2" in (bundle / "requirements.txt").read_text()


@pytest.mark.parametrize("name", ["numpy", "PIL", "onnxruntime"])
def test_what_is_not_installed_is_one_line_with_what_to_do(name: str, photo: Path, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "bundle")
    done = run(bundle, str(photo), lacking=(name,))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (18, "", 1)
    assert name in done.stderr and f"python -m pip install -r {bundle / 'requirements.txt'}\n" in done.stderr


def test_the_version_is_compared_without_its_commit(photo: Path, tmp_path: Path) -> None:
    release = metadata.version("openvino")
    tools = {"edgevit": "0.1.0", "openvino": f"{release}-123-abc-releases/2026"}
    assert run(sample_bundle(tmp_path / "b", runtime="openvino", changes={"tools": tools}), str(photo)).returncode == 0


def test_check_passes_on_an_intact_bundle_and_names_a_damaged_file(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--check")
    assert done.returncode == 0, done.stderr
    assert "3 golden outputs as expected" in done.stdout
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name, raw in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    model = next(p for p in (tmp_path / "model").iterdir() if p.suffix in (".data", ".bin"))
    model.write_bytes(model.read_bytes()[:-1] + b"\x7f")
    done = run(tmp_path, "--check")
    assert done.returncode == 19
    assert model.name in done.stderr


def test_check_fails_when_an_output_is_not_the_expected_one(folder: Path, tmp_path: Path) -> None:
    broken = sample_bundle(tmp_path / "broken", runtime=json.loads((folder / "manifest.json").read_text())["backend"])
    path = broken / "manifest.json"
    data = json.loads(path.read_text())
    data["golden"][0]["logits"] = data["golden"][1]["logits"]
    rewrite(broken, data)
    done = run(broken, "--check")
    assert done.returncode == 1
    assert "FAILED all_open" in done.stdout and "2 golden outputs as expected" in done.stdout


def test_check_compares_numbers_of_tokens(tmp_path: Path) -> None:
    merging = sample_bundle(tmp_path / "merging", gated=False, image=(64, 64), tokens="1:0-24@0.2")
    assert "3 golden outputs as expected" in run(merging, "--check").stdout
    path = merging / "golden" / "all_open.tokens.npy"
    np.save(path, np.load(path) - np.int32(8))
    rehash(merging)
    done = run(merging, "--check")
    assert done.returncode == 1 and "FAILED all_open" in done.stdout and ", other tokens" in done.stdout


def test_a_damaged_model_is_not_loaded(folder: Path, tmp_path: Path, photo: Path) -> None:
    path = folder / "manifest.json"
    copy = tmp_path / "copy"
    (copy / "runner").mkdir(parents=True)
    (copy / "runner" / "run.py").write_bytes((folder / "runner" / "run.py").read_bytes())
    (copy / "manifest.json").write_bytes(path.read_bytes())
    done = run(copy, str(photo))
    assert done.returncode == 19 and "damaged" in done.stderr


def put(data: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A manifest with one value replaced, or left out where that is `...`."""
    changed: Any = json.loads(json.dumps(data))
    inside, *keys = changed, *(int(key) if key.isdigit() else key for key in place.split("."))
    for key in keys[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[keys[-1]]
    else:
        inside[keys[-1]] = value
    return dict(changed)


ODD: list[Any] = [None, 5, "x", [], {}, [1], [{}], {"a": 1}, 1e308, ...]
ESCAPE = "\x1b]0;x\x07\u202e"


@pytest.fixture
def at_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle whose runner is the common part, in this process: all but its model."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    monkeypatch.setattr(runner, "ROOT", copy)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    return copy


def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Its exit code, and what it says in a line that steers no terminal."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(runner.main())
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int) and "\x1b" not in said.out + said.err
    return ended.value.code, said.err


@pytest.mark.parametrize(
    "place",
    [
        *("points", "target", "target.threads", "tools", "files", "files.0", "files.0.path", "files.0.bytes", "model"),
        *("labels", "bound", "bound.bound_bytes", "golden", "golden.0", "golden.0.image", "backend", "outputs"),
    ],
)
def test_a_manifest_of_odd_values_is_refused_in_a_line(
    place: str, at_home: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or runs, where the value is not needed."""
    stated = json.loads((at_home / "manifest.json").read_text())
    for value in ODD:
        rewrite(at_home, put({"points": [], **stated}, place, value))
        for arguments in ((str(photo), "--effort", "fast"), (str(photo),), ("--check",)):
            code, said = ends(monkeypatch, capsys, *arguments)
            assert code in (2, 19), (value, code, said)
    (at_home / "manifest.json").write_text("[" * 100_000)
    assert ends(monkeypatch, capsys, str(photo))[0] == 19


@pytest.mark.parametrize("place", ["model", "labels", "golden.0.logits", "golden.0.tokens"])
@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.json", "runner/../labels.json", f"a{ESCAPE}"])
def test_what_the_manifest_does_not_list_is_not_read(
    place: str, name: str, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home.parent / "outside.json").write_text("[]")
    rewrite(at_home, put(json.loads((at_home / "manifest.json").read_text()), place, name))
    code, said = ends(monkeypatch, capsys, "--check")
    assert code == 19 and "manifest.json does not list " in said


def test_only_a_regular_manifest_of_bounded_size_is_read(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle may come in a tar, which holds pipes too."""
    (at_home / "manifest.json").unlink()
    os.mkfifo(at_home / "manifest.json")
    assert ends(monkeypatch, capsys, "x.jpg") == (19, ANY)
    (at_home / "manifest.json").unlink()
    (at_home / "manifest.json").touch()
    os.truncate(at_home / "manifest.json", 1 << 40)
    code, said = ends(monkeypatch, capsys, "x.jpg")
    assert code == 19 and "bytes, allowed: 16777216" in said


def test_names_of_a_manifest_do_not_steer_the_terminal(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = json.loads((at_home / "manifest.json").read_text())
    rewrite(at_home, {**stated, "points": [{"name": ESCAPE, "effort": 0}]})
    assert ends(monkeypatch, capsys, "x.jpg", "--effort", "fast")[0] == 2
    rewrite(at_home, put(stated, "golden.0.path", ESCAPE))
    monkeypatch.setattr(runner, "load_model", lambda *_: lambda image, effort: (np.zeros((1, 10)), np.zeros(4)))
    assert ends(monkeypatch, capsys, "--check")[0] == 1

    def missing(*_: object) -> None:
        raise ImportError("no module")

    rewrite(at_home, put(stated, "backend", ESCAPE))
    monkeypatch.setattr(runner, "load_model", missing)
    assert ends(monkeypatch, capsys, "--check")[0] == 18


def test_no_name_stands_for_another_number(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = json.loads((at_home / "manifest.json").read_text())
    for name in ("0", "0.5", "inf"):
        points = [{"name": name, "effort": 9.0}]
        assert runner.effort_of(name, {**stated, "points": points}, argparse.ArgumentParser()) == float(name)
