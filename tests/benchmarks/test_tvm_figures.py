"""Figures of TVM's kernels: the peak is a loop of the instructions it stands for, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.timing import Ratio
from benchmarks.tvm_figures import OPERANDS, Compiled, Process, Report, Share, generated, peak_function, render
from benchmarks.tvm_tuning import Tuning
from edgevit.measure.environment import environment, snapshot
from edgevit.program.program import expected_shapes
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

import tvm  # noqa: E402

from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.inspect.counts import count  # noqa: E402


@pytest.mark.parametrize(
    ("name", "bits", "mnemonic"), [("avx2", None, r"vfmadd\w+ps"), ("avx2", 7, "vpmaddubsw"), ("avx2", 8, "vpmaddwd")]
)
def test_the_peak_multiplies_in_all_registers_and_loads_nothing(name: str, bits: int | None, mnemonic: str) -> None:
    target = isa(name)
    function, macs = peak_function(target, None if bits is None else dot(target, bits))
    module = tvm.IRModule({"peak": function.with_attr("global_symbol", "peak")})
    compiled = tvm.compile(module, target=tvm.target.Target(dict(target.target)))
    modules = [compiled.mod]
    for part in modules:
        modules.extend(part.imports)
    assembly = "".join(str(part.inspect_source("asm")) for part in modules if part.kind == "llvm")
    chains = target.registers - OPERANDS
    found = count(assembly, "peak", mnemonic)
    assert found and found % chains == 0  # the compiler may have unrolled the loop
    assert macs % (chains * target.lanes) == 0
    loads = count(assembly, "peak", r"(?:vmov[au]p[sd]|vmovdq[au]\d*)\s+[-\d]*\(%r(?!ip)")
    assert loads < chains  # none in the loop: what it starts from, before it


def test_the_peak_of_four_products_multiplies_each_pair_once() -> None:
    target = isa("avx2")
    function, macs = peak_function(target, dot(target, 7).joining(4))
    compiled = tvm.compile(
        tvm.IRModule({"peak": function.with_attr("global_symbol", "peak")}),
        target=tvm.target.Target(dict(target.target)),
    )
    modules = [compiled.mod]
    for part in modules:
        modules.extend(part.imports)
    assembly = "".join(str(part.inspect_source("asm")) for part in modules if part.kind == "llvm")
    pairs, wide = (count(assembly, "peak", mnemonic) for mnemonic in ("vpmaddubsw", "vpmaddwd"))
    assert pairs == 2 * wide > 0
    assert macs == 2 * peak_function(target, dot(target, 7))[1]


def test_a_wider_model_has_as_many_branches() -> None:
    spec = tiny_program().spec
    wide = generated(spec, dim=64, heads=4)
    assert [b.units for b in wide.spec.branches] == [4, 256] * 2 and wide.spec.dim == 64
    assert {n: a.shape for n, a in wide.weights.items()} == expected_shapes(wide.spec)
    assert all(a.dtype == np.float32 for a in wide.weights.values())


def test_the_table_says_what_was_measured() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="tvm", runtime_version="tvm 1", inference_precision="f32", threads=1
    )
    certain = Ratio(value=0.9, low=0.8, high=0.95)
    share = Share(name="qkv", kind="float", shape=(197, 576, 192), tile=(4, 3), giga_macs=44.0, of_peak=certain)
    process = Process(
        model="m",
        kind="int8",
        weights_bytes=5_000_000,
        started_bytes=9_000_000,
        loaded_bytes=10_000_000,
        peak_bytes=16_000_000,
        loaded={"weights": 0, "model": 110_000, "runtime": 4_700_000, "system": 3_400_000, "own": 640_000},
    )
    tuned = Tuning(
        model="m",
        kind="int8",
        allowed_s=60.0,
        searched=12,
        products=13,
        changed=2,
        cpu_s=6.23,
        again_s=0.4,
        to_default=certain,
    )
    compiled = Compiled(model="deit_base", kind="float", cpu_s=12.5, weights_bytes=344_000_000)
    report = Report(
        command="c",
        machine=machine,
        target="t",
        rounds=6,
        peaks={"float": 44.7},
        shares=(share, replace(share, kind="int8")),
        compiled=(compiled,),
        processes=(process,),
        tuned=(tuned,),
    )
    lines = render(report).splitlines()
    assert "| qkv | float | 197 x 576 x 192 | 4 x 3 | 44.0 | 0.900 (0.800 to 0.950) | 85% |" in lines
    assert "| deit_base | float | 344.0 | 12.5 | 120 |" in lines
    assert "| m | int8 | 5.0 | 9.0 | 10.0 | 2.00 | 0.20 | 16.0 |" in lines
    assert "| m | int8 | 60 | 6.2 | 0.40 | 12 of 13 | 2 | 0.900 (0.800 to 0.950) |" in lines
    assert "| m | int8 | 0.00 | 0.11 | 4.70 | 3.40 | 0.64 |" in lines
