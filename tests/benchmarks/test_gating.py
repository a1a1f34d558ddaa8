from pathlib import Path

import numpy as np
import pytest

from benchmarks.gating import (
    NAMES,
    PLAIN,
    PathCost,
    Report,
    Result,
    block_order,
    chosen_targets,
    gated,
    kind_order,
    macs_share,
    table,
)
from benchmarks.timing import Ratio
from edgevit.backends import onnx_backend
from edgevit.measure.environment import cpu_flags, environment, snapshot
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import total_macs
from edgevit.schema.target import missing_flags
from edgevit.util import strict_json
from edgevit.util.resources import shipped
from tests.tiny import tiny_images, tiny_program


def test_effort_opens_the_first_k_of_the_order(tmp_path: Path) -> None:
    program = tiny_program(depth=3)
    order = kind_order(program.spec, "ffn")
    runtime = onnx_backend("onnxruntime")
    runtime.compile(assemble(gated(program, order)), tmp_path, formats=("onnx",))
    runner = runtime.load(tmp_path)
    for image in tiny_images(program.spec, 3):
        for opened in range(7):
            _, state = runner.run(image[None], opened - 0.5)
            assert set(np.flatnonzero(state)) == set(order[:opened])


def test_all_open_computes_what_the_plain_model_does(tmp_path: Path) -> None:
    program = tiny_program()
    runtime = onnx_backend("onnxruntime")
    logits = []
    for name, model in (
        (PLAIN, assemble(program, gating="open")),
        ("gated", assemble(gated(program, block_order(program.spec)))),
    ):
        (tmp_path / name).mkdir()
        runtime.compile(model, tmp_path / name, formats=("onnx",))
        logits.append(runtime.load(tmp_path / name).run(tiny_images(program.spec, 1), 99.0)[0])
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_orders_name_every_branch_once_and_blocks_keep_together() -> None:
    spec = tiny_program(depth=12).spec
    orders = [block_order(spec), kind_order(spec, "mhsa"), kind_order(spec, "ffn")]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert all(orders[0][i] // 2 == orders[0][i + 1] // 2 for i in range(0, 24, 2))
    assert [spec.branches[i].kind for i in orders[1]] == ["mhsa"] * 12 + ["ffn"] * 12


def test_shares_of_macs_go_from_what_always_runs_to_one() -> None:
    spec = gated(tiny_program(depth=2), range(4)).spec
    shares = [macs_share(spec, range(k)) for k in range(5)]
    assert shares[-1] == 1 and shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert (shares[1] - shares[0]) * total_macs(spec) == pytest.approx(
        round((shares[1] - shares[0]) * total_macs(spec))
    )


@pytest.mark.parametrize(
    ("runtime", "measured", "overhead", "closed", "missed"),
    [
        ("ORT", 0.55, 1.01, 0.05, 0),
        ("ORT", 0.62, 1.01, 0.05, 1),
        ("ORT", 0.55, 1.03, 0.05, 1),
        ("TVM", 0.55, 1.01, 0.010, 0),
        ("TVM", 0.55, 1.01, 0.011, 1),
    ],
)
def test_a_missed_figure_is_called_so(
    runtime: str, measured: float, overhead: float, closed: float, missed: int
) -> None:
    def certain(value: float) -> Ratio:
        return Ratio(value=value, low=value, high=value)

    path = PathCost(name="12 of 24", open=12, macs=0.55, time=certain(measured), cpu_median_ms=1.0)
    result = Result(
        model="m",
        runtime=runtime,
        target="t",
        plain_cpu_median_ms=1.0,
        overhead=certain(overhead),
        closed=certain(closed),
        paths=(path,),
    )
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    text = table(Report(command="c", machine=machine, runs=1, calibration=1, results=(result,)))
    assert text.count("**missed**") == missed
    assert text.count(": met") + text.count("| met") == 2 + (runtime == "TVM") - missed


def test_every_runtime_is_measured_with_the_target_that_this_cpu_is_made_for() -> None:
    chosen = chosen_targets()
    assert [target.backend for target in chosen] == [
        name for name in NAMES.values() if name in {t.backend for t in chosen}
    ]
    assert {target.backend for target in chosen} >= {"onnxruntime", "openvino"}
    for target in chosen:
        assert target.backend != "tvm" or not missing_flags(target, cpu_flags())


def test_what_was_measured_with_vnni_is_what_is_shown() -> None:
    path = shipped("targets").parent / "reports/reference/gating-vnni.json"
    faults: list[str] = []
    report = strict_json.from_data(Report, strict_json.read_json(path), faults)
    assert report is not None and not faults
    assert table(report) == path.with_suffix(".md").read_text(encoding="utf-8")
    assert [result.runtime for result in report.results] == list(NAMES)
