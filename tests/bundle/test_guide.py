"""README.md and requirements.txt of a bundle: true to its manifest, and still text whatever others wrote into it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from edgevit.bundle.guide import Guide, plain, readme, requirements
from edgevit.program.spec import OriginalEvaluation, OriginalSpec
from edgevit.schema.claims import Claim, Fraction
from edgevit.schema.manifest import Manifest
from edgevit.schema.points import OperatingPoint
from tests.bundles import sample_bundle, sample_manifest
from tests.tiny import tiny_program

SHARE = Fraction(hits=97, images=100, value=0.97, low=0.92, high=0.99)


def manifest(**options: object) -> Manifest:
    return sample_manifest(tiny_program(**{"gated": True, **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide") / "tiny"
    return sample_bundle(folder, runtime=request.param, labels=[f"thing {i}" for i in range(10)])


def test_it_names_every_file_that_is_there_and_no_other(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = {name.replace("\\", "") for name in re.findall(r"^\| (\S+\.?\S*) \| \d+ \|$", text, re.M)}
    assert there - listed == {"README.md", "manifest.json", "sbom.cdx.json"} and listed < there
    assert "licences/weights.txt" in there and "named in labels.json" in text


def test_the_runtime_is_pinned(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    pinned = (folder / "requirements.txt").read_text().splitlines()
    name = data["backend"]
    assert pinned[0] == f"{name}=={data['tools'][name].partition('-')[0]}" and len(pinned) == 3
    assert all(line.isascii() and " " not in line for line in pinned)


def test_what_it_says_to_run_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of `Link it` as it stands, from the bundle's folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "README.md", "exec"), found)
    assert found["logits"].shape == (1, 10) and found["gates"].shape == (4,)  # type: ignore[attr-defined]


def test_a_program_of_its_own_needs_no_runtime() -> None:
    assert requirements(manifest(), Guide()) == "numpy>=1.26,<3\npillow>=10.3\n"
    assert "--any-version" not in readme(manifest(), Guide())


def test_pixels_go_in_and_nothing_else() -> None:
    text = readme(manifest(), Guide())
    assert "normalisation is inside\nthe model" in text and "short side is brought to 35 pixels" in text


def test_points_stand_in_a_table() -> None:
    points = (
        OperatingPoint(
            effort=-1.5, name="fast", macs=1.5e6, worst_macs=2_000_000, branches=1.5, images=64, agreement=SHARE
        ),
        OperatingPoint(effort=0.0, macs=2e6, worst_macs=3_000_000, branches=3, images=64),
    )
    text = readme(dataclasses.replace(manifest(), points=points), Guide())
    assert "| fast | -1.5 | 97.0% | 1.5 | 2 | 1.5 |" in text and "--effort fast" in text
    assert "| - | 0 | - | 2 | 3 | 3.0 |" in text and "on 64 images" in text and "A row without a name" in text
    assert "| name | effort | agreement | million MACs, mean |" in text  # no labels, so no column of top-1
    labelled = tuple(dataclasses.replace(point, top1=SHARE) for point in points[:1])
    text = readme(dataclasses.replace(manifest(), points=labelled), Guide())
    assert "| fast | -1.5 | 97.0% | 97.0% | 1.5 | 2 | 1.5 |" in text and "A row without a name" not in text


def test_an_effort_above_every_threshold_is_a_word() -> None:
    least = OperatingPoint(effort=-1e30, name="fastest", macs=2e6, worst_macs=2_000_000, branches=1.0, images=64)
    points = (least, dataclasses.replace(least, effort=1e30, name="full"))
    text = readme(dataclasses.replace(manifest(), points=points), Guide())
    assert "| fastest | -infinity |" in text and "| full | infinity |" in text
    assert "`infinity` is any effort above every threshold" in text and "| 1e+30" not in text


def test_what_is_read_of_a_picture_is_said_without_the_manifest() -> None:
    made = manifest()
    turned = dataclasses.replace(made.input.preprocessing, orientation="apply")
    upright = dataclasses.replace(made, input=dataclasses.replace(made.input, preprocessing=turned))
    for each, word in ((made, "ignored"), (upright, "applied")):
        text = readme(each, Guide())
        assert f"the EXIF orientation {word} (" in text and "preprocessing.orientation" not in text


def test_without_gates_there_are_no_points_and_that_is_said() -> None:
    text = readme(manifest(gated=False), Guide())
    assert "so there are no operating points" in text and "`effort` is" not in text
    assert "Operating points were not measured" in readme(manifest(), Guide())


def test_budgets_and_open_claims_are_said() -> None:
    made = manifest()
    target = dataclasses.replace(made.target, ram_mb=0.1, latency_ms=30)
    open_claim = Claim(name="skip", held=None, summary="no device ran it")
    text = readme(dataclasses.replace(made, target=target, claims=(open_claim,)), Guide())
    assert "| memory of the process in MB | 0.1 | 0.42 | not met |" in text
    assert "| time of an image in ms | 30 | - | not known |" in text
    assert "Not verified yet: skip (no device ran it)" in text


def test_what_compression_cost_is_said_where_top1_is_not_measured_here() -> None:
    said = OriginalEvaluation(source="a|b.tar", images=1000, classes=10, original_top1=0.751, top1=0.749)
    original = OriginalSpec(name="x", weights_sha256="", macs=5, parameters=7, evaluations=(said,))
    facts = dataclasses.replace(manifest(), original=original)
    assert "When it was compressed" not in readme(facts, Guide())
    unlabelled = dataclasses.replace(facts, accuracy=facts.accuracy[2:])
    told = "When it was compressed: top-1 75.1 -> 74.9 % on 1000 images of a\\|b.tar (original, then compressed"
    assert told in readme(unlabelled, Guide()).replace("\\>", ">")


def test_what_was_done_to_the_model_and_what_it_cost_before_is_said() -> None:
    steps = ("tokens merged at 3:4: drift 0.01 | on 3 images", "output linears fitted")
    original = OriginalSpec(name="x", weights_sha256="", macs=5, parameters=7, steps=steps)
    facts = manifest()
    macs = dataclasses.replace(facts.macs, dense=facts.macs.all_open - 1, expected=facts.macs.all_open / 2)
    text = readme(dataclasses.replace(facts, original=original, macs=macs), Guide())
    assert "| compression | tokens merged at 3:4: drift 0.01 \\| on 3 images; output linears fitted |" in text
    assert "before compression)" in text and "| compression |" not in readme(facts, Guide())


def test_a_licence_that_is_not_stated_is_not_made_up() -> None:
    text = readme(dataclasses.replace(manifest(), origin={}), Guide())
    assert "no licence is stated" in text and "Weights: Apache" not in text


def test_what_others_wrote_stays_text() -> None:
    evil = "x\n# y | <img src=x> [a](http://b) `c` \x1b[31m {{ m.name }}"
    assert plain("a|b_c`*\n") == r"a\|b_c\`\* "
    text = readme(dataclasses.replace(manifest(), name=evil, origin={"license": evil}), Guide())
    assert "\x1b" not in text and "\n# y" not in text and " <img" not in text and "{{ m.name }}" in text
