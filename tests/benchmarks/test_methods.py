"""Mixes of methods: what they are called, that one Program takes over another's merges, and what the report says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.methods import MIXES, merging_like
from benchmarks.methods_report import STYLES, Mix, Row, best, plot, table
from edgevit.schema.measurement import Environment
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program


def row(mix: Mix, drift: float, time: float) -> Row:
    common = {"model": "deit_tiny", "target": "x86-64-avx512vnni-tvm", "macs": 0.7, "macs_low": 0.6, "macs_high": 0.8}
    return Row(**asdict(mix), **common, top1=0.7, agreement=0.9, drift=drift, images=10, time=time)  # type: ignore[arg-type]


ROWS = [row(Mix(), 0.01, 1.0), row(Mix(merge=0.7), 0.02, 0.7), row(Mix(prune=0.3), 0.03, 0.75)]


def machine() -> Environment:
    names = {f: None for f in Environment.__dataclass_fields__}
    return Environment(**{**names, "cpu": "a CPU", "cores": 2, "load_average_before": 0.5})  # type: ignore[arg-type]


def test_every_mix_has_a_file_of_its_own_and_a_style() -> None:
    assert len({mix.slug for mix in MIXES}) == len(MIXES)
    assert {mix.method for mix in MIXES} == set(STYLES)
    assert Mix(prune=0.1, gate=0.9, merge=0.7).name == "prune 0.1, gates 0.9, merge to 0.7"


def test_only_what_nothing_else_beats_is_best() -> None:
    assert best(ROWS, "deit_tiny") == {"dense", "merge-to-0.7"}
    assert best([*ROWS, row(Mix(gate=0.9), 0.005, 0.6)], "deit_tiny") == {"gates-0.9"}
    assert best([*ROWS, row(Mix(gate=0.9), 0.015, 0.7)], "deit_tiny") == {"dense", "gates-0.9"}


def test_a_gated_program_takes_over_merges_and_what_guards_them() -> None:
    merged = tiny_program(tokens="1:4,2:3", shift=True, depth=3)
    gated = tiny_program(gated=True, seed=1, depth=3)
    both = merging_like(gated, merged)
    assert both.spec.merges == merged.spec.merges and all(b.gate for b in both.spec.branches)
    np.testing.assert_array_equal(both.weights["b00_mhsa.merge.shift"], merged.weights["b00_mhsa.merge.shift"])
    (batch,) = batches(both.spec, tiny_images(both.spec), 4)
    assert Vit(both).answer(batch).tokens[0].tolist() == [12, 9]


def test_the_report_names_what_nothing_beats_and_spreads() -> None:
    said = table(ROWS, machine(), 5)
    assert "| **merge to 0.7** | 0.700 (0.600 to 0.800) | 0.700 (1.000 to 1.000) |" in said
    assert "| prune 0.3 |" in said


def test_the_picture_stands_beside_peers_where_their_target_is_there(tmp_path: Path) -> None:
    peers = [
        {"model": "deit_tiny", "name": name, "own": own, "int8": True, "to_float": {"value": 0.5}, "accuracy": accuracy}
        for name, own in (("NNCF", False), ("edgevit x86-64-avx512vnni-tvm", True))
        for accuracy in ({"top1": {"value": 0.7}},)
    ]
    for name, beside in (("with.png", peers), ("again.png", peers), ("alone.png", [])):
        plot(ROWS, beside, tmp_path / name)
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "alone.png").read_bytes()
