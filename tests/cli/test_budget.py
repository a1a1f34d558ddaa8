"""One budget convention: shares of the MACs that are left, and what the older options are in terms of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from edgevit.api.label_free import Shares, shares
from edgevit.cli import main
from edgevit.cli.budget import take_budget
from edgevit.cli.messages import shown
from edgevit.compress.budgets import Budgets
from edgevit.program.program import save_program
from tests.tiny import tiny_program


@pytest.mark.parametrize(
    ("macs", "static", "prune", "gate"),
    [
        (1.0, None, 0.0, 1.0),
        (0.7, 1.0, 0.0, 0.7),  # gates do it all
        (0.72, 0.9, 0.1, 0.8),
        (1.0, 0.7, 0.3, 1.0),  # nothing is left for gates
        (0.9, 0.7, 0.3, 1.0),
        (1.0, 0.1, 0.9, 1.0),  # 1 - 0.1 is 0.9, not what the subtraction leaves behind it
    ],
)
def test_what_is_left_is_split_between_pruning_and_gates(
    macs: float, static: float | None, prune: float, gate: float
) -> None:
    assert shares(macs, static) == Shares(prune=prune, gate=gate)


def test_without_a_static_share_tokens_are_merged() -> None:
    asked = shares(0.7, None)
    assert asked == Shares(prune=0.0, gate=1.0, merge=0.7)
    assert asked.budgets == Budgets(merged=0.7) and asked.budgets.compresses
    assert not Shares(prune=0.0, gate=1.0).budgets.compresses
    assert shares(0.56, 0.7).budgets == Budgets(static=0.7, expected=0.7 * 0.8)


@pytest.mark.parametrize(
    ("given", "asked", "said"),
    [
        ({}, Shares(prune=0.0, gate=1.0), ""),
        ({"macs": 0.7}, Shares(prune=0.0, gate=1.0, merge=0.7), ""),
        ({"static": 0.7}, Shares(prune=0.3, gate=1.0), ""),
        ({"prune": 0.3}, Shares(prune=0.3, gate=1.0), "--prune 0.3 is --static 0.7"),
        ({"gate": 0.9}, Shares(prune=0.0, gate=0.9), "--gate 0.9 is --macs 0.9 --static 1"),
        (
            {"prune": 0.1, "gate": 0.9},
            Shares(prune=0.1, gate=0.9),
            "--prune 0.1 is --static 0.9\nedgevit: note: --gate 0.9 is --macs 0.81",
        ),
        ({"static": 0.9, "gate": 0.8}, Shares(prune=0.1, gate=0.8), "--gate 0.8 is --macs 0.72"),
        ({"prune": 0.1, "macs": 0.72}, Shares(prune=0.1, gate=0.8), "--prune 0.1 is --static 0.9"),
        ({"prune": 1 / 3}, Shares(prune=1 / 3, gate=1.0), "--prune 0.333333 is --static 0.666667"),
    ],
)
def test_older_options_say_what_they_are(
    given: dict[str, float], asked: Shares, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"macs": None, "static": None, "prune": None, "gate": None, "seed": 3, **given}
    with shown():
        assert take_budget(options) == asked
    assert options == {"seed": 3}
    assert capsys.readouterr().err == (f"edgevit: note: {said}\n" if said else "")


@pytest.mark.parametrize("both", [{"prune": 0.1, "static": 0.9}, {"gate": 0.1, "macs": 0.9}])
def test_two_words_for_one_number_are_refused(both: dict[str, float]) -> None:
    with pytest.raises(click.UsageError, match="give one of them"):
        take_budget({"macs": None, "static": None, "prune": None, "gate": None, **both})


def test_what_is_predicted_is_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_program(tiny_program(depth=4, hidden=64), tmp_path / "program")
    command = ["build", str(tmp_path / "program"), "--target", "x86-64-onnxruntime", "--dry-run", "--json"]
    left = {}
    for options in ("--macs 0.7", "--static 0.7", "--prune 0.3", "--macs 0.56 --static 0.7", "--prune 0.3 --gate 0.8"):
        assert main([*command, *options.split()]) == 0
        left[options] = json.loads(capsys.readouterr().out)
    assert left["--static 0.7"] == left["--prune 0.3"]
    assert left["--macs 0.56 --static 0.7"] == left["--prune 0.3 --gate 0.8"]
    dense = left["--macs 0.7"]["dense_macs"]
    for options in ("--macs 0.7", "--static 0.7"):
        assert 0.6 * dense < left[options]["all_open_macs"] <= 0.7 * dense
    assert left["--macs 0.7"]["model_bytes"] > left["--static 0.7"]["model_bytes"]  # merged tokens have no weights
    assert main([*command, "--prune", "0.3", "--static", "0.7"]) == 2
    assert "edgevit: error: --prune is another way to say --static" in capsys.readouterr().err
