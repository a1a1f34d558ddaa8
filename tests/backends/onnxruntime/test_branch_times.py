from __future__ import annotations

from typing import Any

from edgevit.backends.onnxruntime.branch_times import memory_over_run, split_runs, top_level
from edgevit.measure.branch_times import times_by_branch


def node(name: str, ts: int, dur: int, op: str = "Gemm", in_use: int | None = None, peak: int = 0) -> dict[str, Any]:
    args = {"op_name": op}
    if in_use is not None:
        args |= {"mem_bytes_in_use": str(in_use), "mem_in_use_peak": str(peak)}
    return {"name": f"{name}_kernel_time", "cat": "Node", "ts": ts, "dur": dur, "args": args}


RUN = [
    node("stem/y", 10, 5, in_use=100, peak=100),
    node("b00_mhsa.gate/open", 15, 2, "Greater", 101, 101),
    node("b00_mhsa/y", 18, 50, "If", 110, 190),
    node("b00_mhsa.qkv/y", 20, 30, in_use=180, peak=180),
    node("gemm_token_2", 50, 15, in_use=190, peak=190),
    node("fused_quantize", 70, 3, "QuantizeLinear", 120, 190),
    node("b00_ffn.fc1/y", 74, 20, in_use=150, peak=190),
    node("head/y", 95, 4, in_use=105, peak=190),
]


def test_what_lies_inside_an_if_is_not_counted_twice() -> None:
    names = [e["name"].removesuffix("_kernel_time") for e in top_level(RUN)]
    assert names == ["stem/y", "b00_mhsa.gate/open", "b00_mhsa/y", "fused_quantize", "b00_ffn.fc1/y", "head/y"]


def test_a_gated_branch_is_its_if_and_an_ungated_one_the_sum_of_its_nodes() -> None:
    rows = [(e["name"].removesuffix("_kernel_time"), float(e["dur"])) for e in top_level(RUN)]
    assert times_by_branch(rows, ["b00_mhsa", "b00_ffn"], ["b00_mhsa"]) == {"b00_mhsa": 50.0, "b00_ffn": 23.0}
    # Without gates the same rows are the nodes of both.
    assert times_by_branch(rows, ["b00_mhsa", "b00_ffn"], []) == {"b00_mhsa": 52.0, "b00_ffn": 23.0}


def test_runs_are_told_apart_by_their_spans() -> None:
    later = [{**e, "ts": e["ts"] + 1000} for e in RUN]
    spans: list[dict[str, Any]] = [
        {"name": "model_run", "cat": "Session", "ts": t, "dur": 100, "args": {}} for t in (1005, 5)
    ]
    first, second = split_runs([*spans, *reversed(later), *RUN])
    assert [e["ts"] for e in first] == sorted(e["ts"] for e in RUN)
    assert [e["ts"] for e in second] == [e["ts"] + 1000 for e in first]


def test_memory_is_ordered_by_the_end_of_a_node_and_the_peak_is_of_all_runs() -> None:
    trace = memory_over_run(RUN, [RUN, [node("x", 0, 1, in_use=1, peak=500)]])
    assert trace is not None
    assert trace.peak_bytes == 500
    assert [p.where for p in trace.points][2:5] == ["b00_mhsa.qkv/y", "gemm_token_2", "b00_mhsa/y"]
    assert max(p.bytes for p in trace.points) == 190
    assert memory_over_run([node("x", 0, 1)], []) is None
