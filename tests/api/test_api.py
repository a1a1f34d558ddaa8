"""The public API: its names, its examples, what it takes for images, and that the command line calls nothing else."""

from __future__ import annotations

import ast
import doctest
import io
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevit
from edgevit.api.images import take_images
from edgevit.errors import BudgetError, BundleError, DeviceError, ImagesError
from edgevit.util.progress import say
from tests.bundles import rehash, sample_bundle
from tests.compressing import dense
from tests.tiny import tiny_images, tiny_program

NAMES = [
    "build",
    "compare",
    "compress",
    "diagnose",
    "load",
    "models",
    "open_bundle",
    "predict",
    "profile",
    "report",
    "save",
    "sign",
    "target",
    "targets",
    "train",
    "verify",
]
TYPES = ["Answer", "Bundle", "Catalogue", "Comparison", "EdgevitError", "Health", "Measurement", "Prediction"]
TYPES += ["Preprocessing", "Program", "Report", "Target", "Trained", "Verified"]
PACKAGE = Path(edgevit.__file__).parent
# What a command may import of this package.
CLI_MAY = ("edgevit.api", "edgevit.errors", "edgevit.util", "edgevit.cli")


def fresh(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_these_are_the_public_names() -> None:
    assert edgevit.__all__ == NAMES
    assert {*NAMES, *TYPES} <= set(dir(edgevit))
    for name in NAMES:
        function = getattr(edgevit, name)
        assert function.__module__.startswith("edgevit.api.") and function.__name__ == name
        assert f"\n    {name} " in edgevit.__doc__
    for name in TYPES:
        assert isinstance(getattr(edgevit, name), type)
        assert name in edgevit.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgevit.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_an_import_is_light() -> None:
    """Only the standard library; what a function needs comes with its first use."""
    allowed = {"edgevit", "openvino_telemetry"}
    program = (
        "import sys; before = set(sys.modules); import edgevit; "
        "print({n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    assert ast.literal_eval(fresh(program)) <= allowed


def test_a_room_of_the_same_name_does_not_hide_a_function() -> None:
    program = (
        "import edgevit\nfrom edgevit.build import prediction\nimport edgevit.compress.memory_budget\n"
        "from edgevit.report import view\nfrom edgevit.verify import skip\n"
        "print([callable(getattr(edgevit, n)) for n in ('build', 'compress', 'report', 'verify')])\n"
        "print(prediction.predict.__module__, view.Report.__name__)"
    )
    assert fresh(program).splitlines() == ["[True, True, True, True]", "edgevit.build.prediction Report"]


def test_help_shows_every_function() -> None:
    shown = fresh("import edgevit; help(edgevit)")
    for name in NAMES:
        assert f"\n    {name}(" in shown
    assert "class Measurement" not in shown


def test_it_is_usable_without_torch() -> None:
    program = (
        "import sys\nfor name in ('torch', 'timm', 'torchvision'):\n    sys.modules[name] = None\n"
        "import edgevit\nhelp(edgevit)\n"
        "try:\n    edgevit.train('vit_tiny_gated', 'photos')\nexcept edgevit.EdgevitError as error:\n    print(error)\n"
        "try:\n    edgevit.Trained\nexcept AttributeError as error:\n    print(error)\n"
    )
    *shown, train, trained = fresh(program).splitlines()
    assert all(f"    {name}(" in "\n".join(shown) for name in NAMES)
    assert train.startswith("torch is not installed and training needs it; install")
    assert trained == "edgevit.Trained needs torch, which is not installed"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("place")
def test_every_public_name_has_an_example_that_runs(name: str, names: dict[str, Any]) -> None:
    function = getattr(edgevit, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(names))
    assert found.examples
    told = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(found, out=told.write)
    assert not result.failed, told.getvalue()


@pytest.mark.parametrize("module", sorted(p.name for p in (PACKAGE / "cli").glob("*.py")))
def test_the_command_line_calls_the_api_alone(module: str) -> None:
    imported: list[str] = []
    waiting: list[ast.AST] = [ast.parse((PACKAGE / "cli" / module).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "edgevit":
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if alias.name.split(".")[0] == "edgevit"]
        waiting += ast.iter_child_nodes(node)
    others = [name for name in imported if not name.startswith(CLI_MAY) and name != "edgevit.__version__"]
    assert not others


def test_images_are_a_path_a_list_or_an_array(place: Path) -> None:
    spec = dense().spec.image
    pixels = tiny_images(dense().spec, 24)
    by_path = take_images("photos", spec)
    assert take_images(sorted((place / "photos").iterdir()), spec).digest == by_path.digest
    given = take_images(pixels, spec, limit=6)
    assert len(given) == 6 and np.array_equal(given.images[1], pixels[4])
    labelled = take_images((pixels, np.arange(24) % 4), spec, labelled=True)
    assert labelled.labels is not None and labelled.labels.tolist() == [i % 4 for i in range(24)]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"images are float32 \[2, 32, 32, 3\]"),
        (np.zeros((2, 30, 32, 3), np.uint8), r"must be uint8 RGB \[n, 32, 32, 3\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), "at least one image"),
        ([], "give a path, a list of paths"),
        ([3], "give a path, a list of paths"),
        (["nowhere.png"], "no images at nowhere.png"),
        ((np.zeros((2, 32, 32, 3), np.uint8), np.zeros(3, int)), r"labels are \[3\]"),
    ],
)
def test_other_images_are_refused(images: Any, said: str) -> None:
    with pytest.raises(ImagesError, match=said):
        take_images(images, dense().spec.image, labelled=isinstance(images, tuple))


def test_an_array_without_labels_judges_no_top1() -> None:
    with pytest.raises(ImagesError, match="give \\(images, labels\\)"):
        take_images(np.zeros((2, 32, 32, 3), np.uint8), dense().spec.image, labelled=True)


@pytest.mark.usefixtures("place")
def test_a_bundle_answers_for_paths_pictures_and_arrays_alike() -> None:
    with edgevit.open_bundle("out/tiny") as bundle:
        picture = Image.open("photos/03.png")
        first = bundle.run("photos/03.png")
        assert np.array_equal(first.logits, bundle.run(picture).logits)
        pixels = take_images("photos/03.png", bundle.manifest.input.preprocessing).images
        assert np.array_equal(first.logits, bundle.run(pixels).logits)
        assert np.array_equal(first.logits, bundle.run(pixels[0]).logits)
        assert bundle.run(pixels, effort=1e30).gates.all() and not bundle.run(pixels, effort=-1e30).gates.any()
        best = first.top(3)
        assert best[0].index == int(first.logits.argmax()) and best[0].label == str(best[0].index)
        assert best[0].share >= best[1].share and sum(score.share for score in first.top(99)) == pytest.approx(1.0)
        others: list[Any] = [pixels.astype(np.float32), np.concatenate([pixels, pixels]), pixels[:, :20]]
        for wrong in others:
            with pytest.raises(ImagesError, match="must be one image, uint8 RGB"):
                bundle.run(wrong)
    with pytest.raises(BundleError, match="was closed"):
        bundle.run(pixels)


@pytest.mark.usefixtures("place")
def test_an_unpacked_bundle_leaves_nothing_behind() -> None:
    bundle = edgevit.open_bundle("out/tiny.zip")
    folder = bundle.folder
    assert folder.is_dir()
    del bundle
    assert not folder.exists()


def test_class_names_come_with_a_bundle(tmp_path: Path) -> None:
    labels = [f"kind {i}" for i in range(10)]
    folder = sample_bundle(tmp_path / "named", labels=labels)
    with edgevit.open_bundle(folder) as bundle:
        answer = bundle.run(tiny_images(tiny_program().spec, 1))
        assert answer.top(1)[0].label == f"kind {int(answer.logits.argmax())}" and bundle.labels == tuple(labels)
    for wrong in ('["one"]', "{}", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "no JSON"):
        (folder / "labels.json").write_text(wrong)
        rehash(folder)
        with pytest.raises(BundleError, match="labels.json of tiny"):
            edgevit.open_bundle(folder)


@pytest.mark.usefixtures("place")
def test_values_show_themselves_in_a_notebook(names: dict[str, Any]) -> None:
    bundle = edgevit.open_bundle("out/tiny")
    measurement = edgevit.profile(bundle, "photos", runs=3)
    program = names["program"]
    shown = {
        "program": program.with_weights({}, replace(program.spec, name="<script>alert(1)</script>")),
        "bundle": bundle,
        "answer": bundle.run("photos/00.png"),
        "measurement": measurement,
        "report": edgevit.report(bundle, measurement),
    }
    for name, value in shown.items():
        page = value._repr_html_()
        assert page.startswith('<div class="edgevit-shown">') and "<table>" in page and "<script" not in page
        assert ("<svg" in page) == (name != "answer")


@pytest.mark.usefixtures("place")
def test_an_array_is_measured_like_the_files_that_it_was_read_from(place: Path) -> None:
    bundle = edgevit.open_bundle("out/tiny")
    pixels = take_images("photos", bundle.manifest.input.preprocessing).images
    by_path, by_array = (edgevit.profile(bundle, images, runs=24) for images in ("photos", pixels))
    assert by_path.images == by_array.images
    assert [b.open_rate for b in by_path.branches] == [b.open_rate for b in by_array.branches]
    with pytest.raises(DeviceError, match="an emulated device has one processor"):
        edgevit.profile(bundle, pixels, device="qemu:cortex-a76", cpus=[0])


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(share: float, names: dict[str, Any]) -> None:
    budgets: tuple[dict[str, Any], ...] = ({"macs": share}, {"static": share})
    for budget in budgets:
        with pytest.raises(BudgetError, match="allowed: above 0 to 1"):
            edgevit.predict(names["program"], target="x86-64-onnxruntime", **budget)


def test_messages_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edgevit"):
        say("Quantizing")
        say("warning: few images")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "Quantizing"),
        ("WARNING", "few images"),
    ]


def test_nothing_is_printed_where_nobody_asked() -> None:
    """Steps are silent without a terminal and without logging; warnings are not."""
    program = (
        "from edgevit.util.progress import say, track; say('step'); list(track(range(3), 'bar')); say('warning: look')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "look\n")
