"""The C++ runner as one uses it: pictures, folders, labels and operating points, as `runner/run.py` answers them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.bundle import runner as shipped
from edgevit.schema.manifest import BundleFile
from edgevit.schema.points import OperatingPoint
from edgevit.util import strict_json
from tests.backends.tvm.available import import_or_skip
from tests.bundles import rewrite, sample_manifest
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from tests.backends.tvm.native_runner import Native, copied, here, read, written  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
PROGRAM = tiny_program(gated=True, skip=True)
LABELS = ["tench", "großer Hund", "steers \u202e\x1b[31m the terminal", *(f"thing {i}" for i in range(7))]


def listed(folder: Path, name: str) -> BundleFile:
    raw = (folder / name).read_bytes()
    return BundleFile(path=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return here(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a bundle has beside its model that the runner reads."""
    folder = written(PROGRAM, isa("avx2"), tmp_path_factory.mktemp("bundle"))
    (folder / "labels.json").write_text(strict_json.dumps(LABELS))
    point = OperatingPoint(effort=0.0, name="balanced", macs=2e5, worst_macs=300_000, branches=2.0, images=4)
    points = (dataclasses.replace(point, effort=-1e30, name="fastest"), point, dataclasses.replace(point, name=None))
    files = tuple(listed(folder, name) for name in ("labels.json", "model.json"))
    made = dataclasses.replace(sample_manifest(PROGRAM), points=points, labels="labels.json", files=files)
    (folder / "manifest.json").write_text(strict_json.seal(made))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pictures and, below it, a third; and what is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for place, name in enumerate(("b.png", "a.ppm", "below/C.PNG")):
        pixels = np.random.default_rng(place).integers(0, 256, (50 + place, 71, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 90)).save(folder / name)
    (folder / "notes.txt").write_text("none")
    return folder


def answered(x86: Native, bundle: Path, *words: object) -> list[dict[str, Any]]:
    done = x86.start(bundle, *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_picture_gives_what_run_py_makes_of_it(
    x86: Native, bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same logits to the bit, and the same words."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    monkeypatch.setattr(shipped, "ROOT", bundle)
    for picture in (photos / "b.png", photos / "a.ppm"):
        pixels = shipped.read_image(picture, manifest["input"]["preprocessing"])
        (tmp_path / "image.rgb").write_bytes(pixels.tobytes())
        (raw,) = answered(x86, bundle, tmp_path / "image.rgb", "--top", 10)
        (got,) = answered(x86, bundle, picture, "--top", 10)
        assert got["image"] == str(picture) and got["milliseconds"] > 0
        assert got["top"] == raw["top"] and got["gates"] == raw["gates"]
        logits = np.empty((1, 10), dtype=np.float32)
        for row in got["top"]:
            logits[0, row["class"]] = row["score"]
        expected = shipped.best_classes(manifest, logits[0], 10)
        for row, wanted in zip(got["top"], expected, strict=True):
            assert row.pop("probability") == pytest.approx(wanted.pop("probability"), rel=1e-5)
            assert np.float32(row.pop("score")) == wanted.pop("score")
            assert row == wanted
        said = x86.start(bundle, picture, "--top", 4).stdout
        gates = np.array(got["gates"], dtype=np.uint8)
        arguments = SimpleNamespace(effort=0.0, top=4, json=False)
        shipped.classify(manifest, lambda *_, out=(logits, gates): out, picture, pixels, arguments)  # type: ignore[arg-type]
        times = r" \d+\.\d ms "
        assert re.sub(times, " ", said) == re.sub(times, " ", capsys.readouterr().out)
        assert "\\u202e\\u001b[31m" in said or "steers" not in said


def test_folders_and_several_pictures_are_run_one_after_the_other(x86: Native, bundle: Path, photos: Path) -> None:
    done = x86.start(bundle, photos, photos / "b.png", "--json")
    names = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert names == [str(photos / name) for name in ("a.ppm", "b.png", "below/C.PNG", "b.png")]
    assert done.returncode == 0 and "1 files that are not named .jpg, .jpeg, .png or .ppm are left out" in done.stderr


def test_what_cannot_be_read_is_told_and_the_others_are_run(
    x86: Native, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad\n.png").write_bytes((photos / "b.png").read_bytes()[:100])
    done = x86.start(bundle, tmp_path / "bad\n.png", photos / "b.png", tmp_path / "gone.jpg", "--json")
    assert done.returncode == 15 and json.loads(done.stdout)["image"] == str(photos / "b.png")
    errors = done.stderr.splitlines()
    assert len(errors) == 2 and "bad\\u000a.png: the PNG file is cut short" in errors[0] and "gone.jpg" in errors[1]
    (tmp_path / "empty").mkdir()
    done = x86.start(bundle, tmp_path / "empty")
    assert done.returncode == 15 and "is a folder with no picture named" in done.stderr


def test_an_effort_has_a_name(x86: Native, bundle: Path, photos: Path) -> None:
    fastest, skipped, balanced = (
        answered(x86, bundle, photos / "b.png", "--effort", effort)[0]["gates"]
        for effort in ("fastest", "-inf", "balanced")
    )
    assert fastest == skipped and sum(fastest) < sum(balanced)
    done = x86.start(bundle, photos / "b.png", "--effort", "swift")
    assert done.returncode == 2
    assert "no operating point 'swift': it has fastest, balanced; --effort takes a number too" in done.stderr
    done = x86.start(bundle, photos / "b.png", "--effort", "1x")
    assert done.returncode == 2 and "or the name of an operating point, got 1x" in done.stderr


def test_what_runs_the_same_for_every_image_takes_no_effort(
    x86: Native, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    copied(bundle, tmp_path)
    rewrite(tmp_path, {**json.loads((bundle / "manifest.json").read_text()), "effort": None})
    for effort in ("1", "-inf", "fastest"):
        done = x86.start(tmp_path, photos / "b.png", "--effort", effort)
        assert done.returncode == 2 and "takes no effort; omit --effort" in done.stderr
    assert x86.start(tmp_path, photos / "b.png", "--effort", "0").returncode == 0


def test_a_picture_needs_the_manifest_that_says_how_it_is_resized(
    x86: Native, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    for name in ("model.so", "model.json", "model.weights", "image.raw"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    done = x86.start(tmp_path, photos / "b.png")
    assert done.returncode == 15 and "without manifest.json beside the model nothing says how" in done.stderr
    done = x86.start(tmp_path, tmp_path / "image.raw", "--effort", "fast")
    assert done.returncode == 2 and "no operating point 'fast': it has none" in done.stderr
    assert read(x86.start(tmp_path, tmp_path / "image.raw", "--json"))["top"][0]["label"] is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 4}, "has schema 4, this runner reads 3; build again"),
        ({"labels": "../labels.json"}, "names labels elsewhere"),
        ({"labels": "others.json"}, "cannot read"),
        ({"files": []}, "manifest.json lists no model.json"),
        ({"points": [{"name": "fast"}]}, "has no field effort"),
        ({"points": 1}, "field points of another type"),
        ({"outputs": [{"name": "logits", "kind": "scores", "shape": [1, 9]}]}, "has other classes than model.json"),
        ({"input": {"preprocessing": {"height": 33}}}, "has height = 33, allowed: 32 to 32"),
    ],
)
def test_a_manifest_that_is_another_models_is_refused(
    x86: Native, bundle: Path, photos: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    copied(bundle, tmp_path)
    rewrite(tmp_path, {**json.loads((bundle / "manifest.json").read_text()), **change})
    done = x86.start(tmp_path, photos / "b.png")
    assert done.returncode == 19 and told in done.stderr and not done.stdout, done


def test_changed_labels_and_manifests_are_refused(x86: Native, bundle: Path, photos: Path, tmp_path: Path) -> None:
    copied(bundle, tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    for name, content, told in (
        ("labels.json", (bundle / "labels.json").read_text().replace("tench", "trout"), "labels.json was changed"),
        ("labels.json", "[]", "labels.json has 2 bytes, manifest.json says"),
        ("manifest.json", text.replace('"tiny"', '"tin1"'), "manifest.json was changed"),
        ("manifest.json", text[:-30], "is not what edgevit writes"),
        ("manifest.json", "[" * 5000, "too deep a nesting"),
    ):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        done = x86.start(tmp_path, photos / "b.png")
        assert done.returncode == 19 and told in done.stderr, done
        (tmp_path / name).write_text(kept)


def test_a_trace_is_told_in_json_alone(x86: Native, bundle: Path, photos: Path) -> None:
    done = x86.start(bundle, photos / "b.png", "--trace")
    assert done.returncode == 2 and "--trace is told in JSON; add --json" in done.stderr
    (told,) = answered(x86, bundle, photos / "b.png", "--trace")
    assert len(told["calls"]) > 10
    done = x86.start(bundle, "-", photos / "b.png")
    assert done.returncode == 2 and "- stands alone" in done.stderr
