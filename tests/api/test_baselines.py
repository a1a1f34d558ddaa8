"""A bundle is timed beside the model that was named, in the same run, on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import edgevit
from edgevit.api import baselines
from edgevit.cli import main
from edgevit.errors import DeviceError, ProgramError
from edgevit.program.program import save_program
from tests.bundles import sample_bundle
from tests.tiny import tiny_program


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_bundle(tmp_path_factory.mktemp("baselines") / "tiny")


def test_models_are_timed_in_the_same_run(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_program(tiny_program(), tmp_path / "dense")
    out = tmp_path / "m.json"
    given = ["profile", str(bundle), "--runs", "6", "--against", str(tmp_path / "dense"), "-o", str(out)]
    assert main(given) == 0
    told = capsys.readouterr()
    assert "dense float" in told.out and "times the bundle's" in told.out
    made = edgevit.report(bundle, out)
    assert [row.name for row in made.speed] == [
        *("this build", "dense float", "dense float, PyTorch", "dense int8, dynamic")
    ]
    assert all(row.time_ms and row.ratio for row in made.speed)
    assert [path.path for path in made.measurements[0].paths] == ["all_open", "all_skipped", "real"]
    assert all(each.wall is not None and each.wall.runs == 6 for each in made.measurements[0].baselines)


def test_without_a_name_the_original_is_looked_for(bundle: Path) -> None:
    alone = edgevit.profile(bundle, runs=2, against="none")
    assert alone.baselines == ()
    unknown = edgevit.profile(bundle, runs=2)
    assert [each.why for each in unknown.baselines] == ["the original is not at hand; name it with --against"]


def test_the_original_is_made_of_its_name(bundle: Path) -> None:
    with edgevit.open_bundle(bundle) as opened:
        recipe = dataclasses.replace(opened.manifest.recipe, model="deit_tiny_patch16_224.x")
        named = dataclasses.replace(opened.manifest, recipe=recipe)
    found = baselines._by_name(named, (32, 32))
    assert found is not None and found.spec.image.height == 32 and found.spec.head.classes == 10


def test_what_cannot_be_timed_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="give both"):
        edgevit.profile(bundle, runs=2, against_weights="x.safetensors")
    with pytest.raises(DeviceError, match="on this machine only"):
        edgevit.profile(bundle, runs=2, device="ssh://nobody@nowhere", against="deit")
