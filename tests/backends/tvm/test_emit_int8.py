"""A quantized model against the reference of the same plan, and its int8 Linears counted in the machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edgevit.backends.reference import reference_with_margins, taps
from edgevit.errors import CoverageError, RuntimeMissingError
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.quantize.observe import observe
from edgevit.quantize.plan import plan_quantization
from edgevit.schema.claims import Tolerance
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.verify.coverage import check_coverage
from edgevit.verify.parity import FLOAT, QUANTIZED, check_parity
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends.tvm.codegen import threads as shares  # noqa: E402
from edgevit.backends.tvm.codegen.dots import Maddubs  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import Lowered, lower  # noqa: E402
from edgevit.backends.tvm.compile.toolchain import Toolchain, linker, toolchain  # noqa: E402
from edgevit.backends.tvm.inspect import counts  # noqa: E402
from edgevit.backends.tvm.inspect.counts import (  # noqa: E402
    assembly,
    count_int8,
    disassembly,
    linear_kernels,
    named,
)
from edgevit.backends.tvm.run.runner import TvmRunner  # noqa: E402

AVX2 = isa("avx2")
# Measured: 5e-7 of the logits' deviation, until an input tips over to the next integer: then up to 0.03.
TIGHT = Tolerance(max_error=0.1, min_cosine=0.999, gate_margin=0.02, max_flips=0.1)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated, skip rows": {"gated": True, "skip": True},
    "distilled": {"gated": True, "skip": True, "prefix": 2, "head_prefix": 2},
    "registers, qk-norm": {"gated": True, "prefix": 5, "qk_norm": True},
    "mean head, stem norm": {"gated": True, "pool": "mean", "stem_norm": True, "activation": "gelu_tanh"},
    "widths of no whole vector": {"gated": True, "skip": True, "dim": 36, "heads": 3, "hidden": 50},
    "the same, joined and normed": {"dim": 36, "heads": 3, "prefix": 2, "head_prefix": 2, "pooled_norm": True},
    "removed": {"depth": 3, "skip": True, "removed": ("b00_ffn", "b01_mhsa", "b02_mhsa"), "patch": 4},
    "merged": {"depth": 3, "tokens": "1:4,2:3", "gated": True, "skip": True},
    "merged, means weighed": {"depth": 3, "tokens": "1:5,2:4", "pool": "mean", "prefix": 0},
}


def planned(program: Program, **options: Any) -> QuantPlan:
    """The plan that the Program's own ranges on some images ask for."""
    gating: Literal["both", "open"] = "both" if program.spec.gated else "open"
    images = [image[None] for image in tiny_images(program.spec, 8)]
    ranges = observe(program.spec, [taps(assemble(program, gating=gating, taps=True))], images)
    return plan_quantization(program, ranges, **{"weight_bits": 7, **options})


def runner(program: Program, plan: QuantPlan, **options: Any) -> TvmRunner:
    return library.runner(lower(program, AVX2, plan, **options))


def changed(plan: QuantPlan, name: str, **values: Any) -> QuantPlan:
    return replace(plan, linears=tuple(replace(p, **values) if p.name == name else p for p in plan.linears))


def counted(lowered: Lowered) -> tuple[tuple[str, bool], ...]:
    """Kernels as the compiler's own assembler tells them."""
    return named(count_int8(lowered, assembly(library.build(lowered))))


def assert_reference(program: Program, plan: QuantPlan) -> None:
    reference = reference_with_margins(assemble(program, plan), optimised=False)
    check_parity(reference, runner(program, plan), tiny_images(program.spec, 4), TIGHT)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_is_the_reference_of_its_plan(name: str) -> None:
    program = tiny_program(seed=1, **VARIANTS[name])
    assert_reference(program, planned(program))


def test_attention_in_int8_is_near_the_reference_and_counted() -> None:
    """The reference computes attention in float; a branch that the plan leaves out does so here too."""
    program = tiny_program(seed=1, dim=36, heads=3)
    plan = planned(program, weight_bits=8)
    whole = replace(plan, attentions=attention_names(program.spec))
    image = tiny_images(program.spec, 1)
    outputs = [runner(program, p).run(image)[0] for p in (plan, replace(plan, attentions=("b00_mhsa",)), whole)]
    errors = [float(np.abs(o - outputs[0]).max()) / float(outputs[0].std()) for o in outputs[1:]]
    assert 0 < errors[0] != errors[1] and max(errors) < 0.1
    lowered = lower(program, AVX2, whole)
    assert check_coverage(whole, counted(lowered)).summary.endswith("2 of 2 attentions")
    with pytest.raises(CoverageError, match="0 of 2 attentions"):
        check_coverage(whole, counted(lower(program, AVX2, plan)))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_eight_bits_and_either_type_of_activations(activations: Literal["uint8", "int8"]) -> None:
    program = tiny_program(seed=1, gated=True)
    assert_reference(program, planned(program, weight_bits=8, activations=activations))


def test_outliers_of_every_linear_are_computed_in_float() -> None:
    """Heads of 12 columns are padded to 16: outliers of `proj` and of a joined head lie elsewhere than in the plan."""
    program = tiny_program(seed=1, dim=36, heads=3, hidden=50, prefix=2, head_prefix=2)
    plan = planned(program)
    for index, name in enumerate(linear_names(program.spec)):
        if name != "stem":
            plan = changed(plan, name, outliers=(index, 30 + index % 5))
    plan = changed(plan, "head", outliers=(1, 40, 71))
    assert_reference(program, plan)
    # They count: with a scale that only they need, the others would be lost.
    assert_reference(program, changed(plan, "b00_ffn.fc2", scale=1e-3))


def test_a_zero_point_of_the_stem_is_the_tables() -> None:
    program = tiny_program(seed=1)
    for activations in ("uint8", "int8"):
        assert_reference(program, changed(planned(program, activations=activations), "stem", zero_point=117))


@pytest.mark.parametrize("part", ["stem", "qkv", "proj", "fc1", "fc2", "head"])
def test_a_linear_that_the_plan_keeps_float_is_float(part: str) -> None:
    program = tiny_program(seed=1, gated=True)
    plan = planned(program)
    floats = [name for name in linear_names(program.spec) if name.endswith(part)]
    for name in floats:
        plan = changed(plan, name, int8=False)
    assert_reference(program, plan)
    lowered = lower(program, AVX2, plan)
    assert {c.linear for _, c in lowered.int8} == set(linear_names(program.spec)) - set(floats)


def test_a_closed_branch_runs_none_of_its_int8_kernels() -> None:
    program = tiny_program(seed=1, gated=True, skip=True)
    lowered = lower(program, AVX2, planned(program))
    names = {name for name, counted in lowered.int8 if counted.linear.startswith("b")}
    model, image, seen = library.runner(lowered), tiny_images(program.spec, 1), set()

    def note(_: Any, name: str, before: bool, *rest: Any) -> None:
        seen.add(name)

    model._machine.set_instrument(note)
    model.run(image, -1e9)
    assert not names & seen
    model.run(image, 1e9)
    assert names <= seen


def test_equal_branches_share_kernels_whatever_their_quantizers_are() -> None:
    lowered = lower((program := tiny_program(depth=6)), AVX2, planned(program))
    names = [str(v.name_hint) for v in lowered.module.functions]
    assert sum(name.startswith("fc1") for name in names) == 2  # all tokens, and the rows the head reads


def test_int8_takes_a_quarter_of_the_weights() -> None:
    program = tiny_program(dim=64, hidden=256)
    sizes = [sum(w.nbytes for _, w in lower(program, AVX2, plan).weights) for plan in (None, planned(program))]
    assert sizes[1] < 0.4 * sizes[0]


def test_every_int8_linear_is_counted_in_the_code() -> None:
    program = tiny_program(seed=1, gated=True)
    plan = planned(program)
    lowered = lower(program, AVX2, plan)
    assert check_coverage(plan, counted(lowered)).summary == "10 of 10 Gemm int8"
    found = count_int8(lowered, assembly(library.build(lowered)))
    assert all(c.mnemonic == "v?pmaddubsw" and c.found > 0 for c in found)


@pytest.mark.parametrize("name", ["sse42", "avx512", "avx512vnni", "avxvnni", "neon", "dotprod", "i8mm"])
def test_every_instruction_set_compiles_the_whole_model(name: str) -> None:
    program = tiny_program(seed=1, gated=True)
    plan = planned(program, weight_bits=8)
    lowered = lower(program, isa(name), plan)
    result = check_coverage(plan, counted(lowered))
    assert result.int8 == result.planned == 10


@pytest.mark.parametrize("weight_bits", [7, 8, None])
def test_without_avx_a_model_has_no_instruction_of_it_and_is_the_reference(weight_bits: int | None) -> None:
    program, sse = tiny_program(seed=1, gated=True, skip=True), isa("sse42")
    plan = planned(program, weight_bits=weight_bits) if weight_bits else None
    lowered = lower(program, sse, plan)
    code = assembly(library.build(lowered))
    assert re.search(r"\bxmm\d", code) and not re.search(r"\b[yz]mm\d|^\s+v\w+\s.*xmm\d", code, re.MULTILINE)
    images = tiny_images(program.spec, 4)
    tolerance = TIGHT if weight_bits else FLOAT
    reference = reference_with_margins(assemble(program, plan), optimised=False)
    check_parity(reference, library.runner(lowered), images, tolerance)


def test_a_float_build_is_no_int8_build() -> None:
    """What counting is worth: a build that ignores the plan, and one whose kernels multiply otherwise, fail."""
    program = tiny_program(seed=1)
    plan = planned(program)
    lowered = lower(program, AVX2)
    with pytest.raises(CoverageError, match="fc1"):
        check_coverage(plan, counted(lowered))
    float_code = library.build(lowered)
    with pytest.raises(CoverageError, match="fc1"):
        check_coverage(plan, named(count_int8(lower(program, AVX2, plan), assembly(float_code))))


def test_kernels_that_multiply_in_float_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import tirx

    def in_float(self: Maddubs, sums: Any, lefts: list[Any], rights: list[Any]) -> Any:
        product = tirx.reinterpret("float32x8", lefts[0]) * rights[0]
        return sums + tirx.Cast("int32x8", product)

    monkeypatch.setattr(Maddubs, "step", in_float)
    program = tiny_program(seed=1)
    plan = planned(program)
    lowered = lower(program, AVX2, plan)
    with pytest.raises(CoverageError, match="fc1"):
        check_coverage(plan, counted(lowered))


def written(folder: Path, name: str, threads: int) -> tuple[Lowered, Any, Path, Toolchain]:
    """A model whose attention is int8 too, its executable and its static library, for an instruction set."""
    made = replace(isa(name), threads=threads)
    arch = str(made.target["mtriple"]).split("-")[0]
    try:
        linker(arch)
        tools = toolchain(arch)
    except RuntimeMissingError as error:
        unavailable(str(error))
    program = tiny_program(seed=1, gated=True, dim=36, heads=3)
    plan = replace(planned(program, weight_bits=8), attentions=attention_names(program.spec))
    lowered = lower(program, made, plan)
    executable = library.build(lowered)
    library.write(lowered, folder, executable, tools=tools)
    return lowered, executable, folder / "lib/libmodel.a", tools


@pytest.mark.parametrize(("name", "threads"), [("avx2", 1), ("avxvnni", 2), ("dotprod", 1), ("i8mm", 2)])
def test_the_library_that_ships_is_counted_as_the_compiler_writes_it(
    name: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where several threads run a kernel's loops, which have no name of their own in a library."""
    monkeypatch.setattr(shares, "WORTH", 0)
    lowered, executable, archive, tools = written(tmp_path, name, threads)
    found = count_int8(lowered, disassembly(archive, tools))
    assert found == count_int8(lowered, assembly(executable)) and all(each.int8 for each in found)


@pytest.mark.parametrize("listing", ["", "0000 <fc1_9>:\n   0:\t(bad)\n"])
def test_what_no_disassembler_knows_is_counted_by_the_compiler(
    listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered, executable, archive, tools = written(tmp_path, "avx2", 1)
    monkeypatch.setattr(counts, "disassembly", lambda *_: listing)
    assert all(int8 for _, int8 in linear_kernels(lowered, executable, archive, tools))


def test_without_a_disassembler_there_is_no_listing(tmp_path: Path) -> None:
    assert disassembly(tmp_path / "missing.a", Toolchain(arch="x86_64", cc="gcc")) == ""
    assert disassembly(tmp_path / "missing.a", Toolchain(arch="x86_64", cc="true")) == ""


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (Debian: binutils)")
def test_what_is_counted_is_what_the_library_holds(tmp_path: Path) -> None:
    program = tiny_program(seed=1)
    lowered = lower(program, AVX2, planned(program))
    library.write(lowered, tmp_path)
    command = ["objdump", "-d", "--no-show-raw-insn", str(tmp_path / "model.so")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = len(re.findall(r"\bvpmaddubsw\b", assembly(library.build(lowered))))
    assert len(re.findall(r"\bvpmaddubsw\b", listing)) == expected > 0


def test_plans_may_name_no_linear_at_all() -> None:
    program = tiny_program(seed=1)
    empty = lower(program, AVX2, QuantPlan(linears=(LinearPlan(name="stem", int8=False),)))
    assert empty.int8 == ()
    image = tiny_images(program.spec, 1)
    np.testing.assert_array_equal(
        library.runner(empty).run(image)[0], library.runner(lower(program, AVX2)).run(image)[0]
    )


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224.fb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"], ids=("deit", "vit")
)
def test_real_models(data: Path, name: str) -> None:
    from edgevit.frontends.resolve import resolve
    from tests.frontends.real import real_images

    program = resolve(name, weights=data / f"{name}.safetensors")
    images = real_images(8)
    runs = [taps(assemble(program, gating="open", taps=True))]
    ranges = observe(program.spec, runs, [image[None] for image in images[2:]])
    plan = plan_quantization(program, ranges, weight_bits=7)
    lowered = lower(program, AVX2, plan)
    assert check_coverage(plan, counted(lowered)).int8 == 50
    # Measured: 0.30 of the logits' deviation, cosine 0.998 (DeiT-Ti); 0.16 and 0.999 (ViT-Ti).
    tolerance = replace(QUANTIZED, max_error=0.75, min_cosine=0.98)
    reference = reference_with_margins(assemble(program, plan), optimised=False)
    check_parity(reference, library.runner(lowered), images[:2], tolerance)
