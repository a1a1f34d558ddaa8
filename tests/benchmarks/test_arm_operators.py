"""The recorded counts per operator: what is shown, that they add up, and that no way not taken is the better one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.arm import dense_blocks
from benchmarks.arm_operators import FORMS, Result, alone, empty, forms, kind, render, total
from benchmarks.arm_other_ways import ways
from benchmarks.arm_peers import RIVAL, read
from edgevit.backends.onnxruntime import options, session
from edgevit.backends.onnxruntime.frames import main_frame
from edgevit.backends.onnxruntime.memory_bound import optimised
from edgevit.util import strict_json
from edgevit.util.resources import shipped

RECORDED = shipped("targets").parent / "reports/reference/arm-operators.json"
PEERS = RECORDED.with_name("arm-peers.json")


def recorded() -> Result:
    faults: list[str] = []
    result = strict_json.from_data(Result, json.loads(RECORDED.read_text()), faults)
    assert result is not None and not faults
    return result


def test_what_is_recorded_is_what_is_shown() -> None:
    assert render(recorded()) == RECORDED.with_suffix(".md").read_text()


def test_nodes_add_up_to_a_session_and_the_lighter_form_is_lighter() -> None:
    result = recorded()
    for form, whole in result.whole.items():
        assert sum(n.instructions for n in result.nodes if n.form == form) == pytest.approx(whole, rel=0.01)
    standard, lighter = (total(result.nodes, form)[1] for form in FORMS)
    assert lighter < 0.95 * standard
    (rival,) = (row for row in read(PEERS) if (row.cpu, row.name) == (result.cpu, RIVAL))
    assert lighter < rival.instructions


def test_the_lighter_form_takes_the_lightest_way_at_equal_numbers() -> None:
    """Of GELU and of products the first or second is what ARM gets; of the rest the first is what all get."""
    found: dict[str, dict[str, int]] = {}
    for way in recorded().ways:
        found.setdefault(way.work, {})[way.operators] = way.instructions
    assert found["GELU"]["Gelu, by tanh"] < 0.6 * found["GELU"]["Gelu, by erf"]
    assert next(iter(found["fc1"])) == min(found["fc1"], key=lambda name: found["fc1"][name])
    assert next(iter(found["softmax"])) == min(found["softmax"], key=lambda name: found["softmax"][name])


def test_every_node_runs_alone_and_has_a_row() -> None:
    program = dense_blocks()
    for model, fed in forms(program).values():
        graph = optimised(model)
        values = main_frame(graph).values
        assert set(fed) == {"image"}
        node = next(n for n in graph.node if n.op_type == "Softmax")
        single, inputs = alone(node, graph, values)
        (got,) = session(single.SerializeToString(), options()).run(None, dict(inputs))
        np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-5)
    rows = {kind(n) for n in recorded().nodes}
    assert {"GELU", "softmax", "fc1: product", "attention's values: product, float", "stem, head"} <= rows
    assert len(rows) == 13


def test_other_ways_compute_what_they_say() -> None:
    found: dict[str, list[np.ndarray]] = {}
    for way in ways():
        if way.work in ("GELU", "attention's scores", "addition and LayerNorm"):
            model, fed = way.fed
            (got,) = session(model.SerializeToString(), options()).run(None, dict(fed))
            found.setdefault(way.work, []).append(got)
    erf, tanh, quick = found["GELU"]
    assert 0 < np.abs(erf - tanh).max() < 5e-4 < np.abs(erf - quick).max()
    exact, rounded = found["attention's scores"]
    assert np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()
    two, one = found["addition and LayerNorm"]
    np.testing.assert_allclose(one, two, atol=1e-4)
    (nothing, fed) = empty()
    assert session(nothing.SerializeToString(), options()).run(None, dict(fed))[0].size == 1
