"""`edgevit report`: its forms beside the terminal's, budgets, and pictures of the images that were measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import edgevit
from edgevit.api.report import report_folder
from edgevit.cli import main
from edgevit.errors import ImagesError, OutputError, TargetError
from edgevit.schema.measurement_file import write_measurement
from tests.bundles import RECIPE, sample_bundle
from tests.report.sample import measurement


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of two models with a measurement each, one on images of its own."""
    root = tmp_path_factory.mktemp("report")
    sample_bundle(root / "one")
    sample_bundle(root / "two", depth=3, changes={"recipe": edgevit_recipe("other")})
    (root / "photos").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{index}.png")
    edgevit.profile(root / "one", root / "photos", runs=16, output=root / "one.json", against="none")
    with edgevit.open_bundle(root / "two") as bundle:
        write_measurement(measurement(bundle_sha256=bundle.sha256), root / "two.json")
    return root


def edgevit_recipe(model: str) -> object:
    return type(RECIPE)(**{**vars(RECIPE), "model": model})


def test_a_folder_of_pages_with_an_index(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(place / name) for name in ("one", "two", "one.json", "two.json")]
    folder = tmp_path / "new" / "pages"
    assert main(["report", *given, "--folder", str(folder)]) == 0
    assert capsys.readouterr().out == f"Written to {folder / 'index.html'}\n"
    assert {page.name for page in folder.iterdir()} == {"one.html", "two.html", "index.html", "compare.html"}
    index = (folder / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', index)
    assert sorted(links) == ["compare.html", "one.html", "two.html"] and "tiny" in index and "other" in index
    assert main(["report", *given, "--folder", str(folder)]) == OutputError.exit_code
    assert main(["report", *given, "--folder", str(folder), "--force"]) == 0
    (folder / "one.html").write_text("mine")
    assert main(["report", *given, "--folder", str(folder), "--force"]) == OutputError.exit_code
    assert (folder / "one.html").read_text() == "mine"
    assert main(["report", given[0], "--folder", str(tmp_path / "one")]) == 0
    assert {page.name for page in (tmp_path / "one").iterdir()} == {"one.html", "index.html"}
    assert main(["report", given[0], "--folder", str(tmp_path / "one"), "--json"]) == 2


def test_pages_of_a_folder_never_take_each_others_names(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, source in (("index", "one"), ("50% off #1", "two")):
        shutil.copytree(place / source, tmp_path / name)
    folder = tmp_path / "pages"
    report_folder(folder, tmp_path / "index", tmp_path / "50% off #1")
    assert {page.name for page in folder.iterdir()} == {
        "index.html",
        "index-2.html",
        "50% off #1.html",
        "compare.html",
    }
    links = re.findall(r'href="([^"]+)"', (folder / "index.html").read_text(encoding="utf-8"))
    assert {(folder / unquote(link)).is_file() for link in links} == {True} and len(links) == 3


def test_pictures_as_files(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "figures"
    assert main(["report", str(place / "one"), str(place / "one.json"), "--figures", str(folder)]) == 0
    names = {file.stem for file in folder.iterdir()}
    assert {"latency", "memory-bound", "size-tree", "open-rates"} <= names
    for name in names:
        svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in svg and ".label" in svg + ".label"
        lines = (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) > 1 and lines[0].count(",") >= 1
    assert "#2f6fd0" in (folder / "memory-bound.svg").read_text(encoding="utf-8")
    again = ["report", str(place / "one"), "--figures", str(folder)]
    assert main(again) == OutputError.exit_code and main([*again, "--force"]) == OutputError.exit_code
    assert "is not empty" in capsys.readouterr().err


def test_markdown_for_a_pull_request(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(place / "one"), str(place / "one.json"), "--markdown"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("### tiny\n") and "| Memory of a process |" in told and "<details>" in told
    assert main(["report", str(place / "one"), "--markdown", "--json"]) == 2


def test_budgets_are_met_not_met_or_unknown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["report", str(place / "one"), str(place / "one.json"), "--json"]
    budgets = ["ram=0.5,latency=10000", "flash_mb=5", "drop=1"]
    assert main([*given, *(word for budget in budgets for word in ("--budget", budget))]) == 0
    told = {check["key"]: check["held"] for check in json.loads(capsys.readouterr().out)["budgets"]}
    assert told == {"ram_mb": False, "flash_mb": True, "latency_ms": True, "drop_points": None}
    for wrong in ("rom=8", "ram=-1", "ram_mb=nan", "ram"):
        assert main([*given, "--budget", wrong]) == TargetError.exit_code


def test_the_easiest_and_the_hardest_images_are_those_that_were_measured(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    given = ["report", str(place / "one"), str(place / "one.json"), "--html", str(page), "--force"]
    assert main([*given, "--images", str(place / "photos")]) == 0
    gates = json.loads((place / "one.json").read_text())["gates"]
    several = len({row.count("1") for row in gates}) > 1
    assert ("data:image/jpeg" in page.read_text(encoding="utf-8")) is several
    (tmp_path / "others").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "others" / "a.png")
    assert main([*given, "--images", str(tmp_path / "others")]) == ImagesError.exit_code
    assert main(["report", str(place / "one"), "--images", str(place / "photos")]) == ImagesError.exit_code
