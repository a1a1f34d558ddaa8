"""The bound against the runtime itself: every node of every path of models that use every part of the lowering."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgevit.backends.onnxruntime import compile, memory_bound, shapes
from edgevit.backends.onnxruntime import settings as backend_settings
from edgevit.backends.onnxruntime.arena import drawn_efforts, measure_arena, run_capped
from edgevit.backends.onnxruntime.arm import ARCH
from edgevit.backends.onnxruntime.frames import ALIGN_BYTES, main_frame
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.onnxruntime.memory_bound import bound, optimised, packed_bytes
from edgevit.backends.onnxruntime.placement import Replay
from edgevit.backends.onnxruntime.stages import Stage, stages
from edgevit.errors import BoundError
from edgevit.measure.environment import cpu_flags
from edgevit.onnx_form.assemble import assemble, detached
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec, StemSpec
from edgevit.schema.memory_bound import BoundDetail, PathMemory, check_bound
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from tests.tiny import tiny_images, tiny_program, tiny_spec, tiny_weights


def quantized(spec: ProgramSpec, outliers: bool = False) -> QuantPlan:
    """All int8 with guessed scales: memory does not depend on them."""
    return QuantPlan(
        linears=tuple(
            LinearPlan(
                name=name,
                int8=True,
                scale=1.0 if name == "stem" else 0.05,
                zero_point=0 if name == "stem" else 128,
                outliers=(1, 5) if outliers and name.endswith("fc2") else (),
            )
            for name in linear_names(spec)
        )
    )


def write(program: Program, folder: Path, plan: QuantPlan | None = None, arch: str = "") -> Path:
    compile(assemble(program, plan), folder, formats=("onnx",), arch=arch)
    return folder / "model.onnx"


def slacks(made: BoundDetail, path: PathMemory) -> set[int]:
    """Bound minus measured, over all nodes of a run that the bound's timeline shows."""
    allowed = dict(made.timeline)
    return {allowed[node] - in_use for node, in_use in path.nodes if node in allowed}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"gated": True},
    "merged": {"depth": 3, "tokens": "1:4,2:3"},
    "merged_late": {"depth": 4, "tokens": "2:4,3:3"},
    "merged_late_gated": {"depth": 4, "gated": True, "skip": True, "tokens": "2:8,3:2"},
    "merged_gated": {"depth": 3, "gated": True, "skip": True, "tokens": "1:8,2:3"},
    "merged_mean": {"depth": 3, "gated": True, "prefix": 0, "tokens": "1:4,2:3"},
    "mean_pool": {"gated": True, "prefix": 0},
    "gate_on_mean": {"gated": True, "gate_pool": "mean"},
    "quick_gelu": {"gated": True, "activation": "quick_gelu"},
    "silu": {"gated": True, "activation": "silu"},
    "relu": {"gated": True, "activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "qk_norm": {"gated": True, "qk_norm": True},
    "distilled": {"gated": True, "prefix": 2, "head_prefix": 2},
    "skip_rows": {"gated": True, "skip": True},
    "removed": {"gated": True, "removed": ("b00_ffn",)},
    "pruned": {"gated": True, "dim": 48, "heads": 3, "hidden": 37, "image": (40, 24), "stem_norm": True},
}


@pytest.mark.parametrize("kind", ["float", "int8", "int8_arm"])
@pytest.mark.parametrize("case", CASES)
def test_every_node_of_every_path_has_in_use_what_the_bound_says(case: str, kind: str, tmp_path: Path) -> None:
    # Packed int8 rows are padded to 64 in the bound (AMX) and to 4 where there is no AMX: with 64 columns, to neither.
    int8, arch = kind != "float", ARCH if kind == "int8_arm" else ""
    program = tiny_program(**{"dim": 64 if int8 else 32, **CASES[case]})
    image = tiny_images(program.spec, 1)
    model = write(program, tmp_path, quantized(program.spec, outliers=True) if int8 else None, arch)
    made = bound(model)
    measured = measure_arena(model, image)
    check_bound(made, measured)
    held = made.bound.io_bytes - image.nbytes  # outputs of the run before, which the first run does not have
    (padding,) = {0} if case != "pruned" or not int8 else slacks(made, measured[-1])
    assert slacks(made, measured[0]) == {held + padding}
    assert all(slacks(made, path) == {padding} for path in measured[1:])
    if program.spec.gated:
        gates = sum(b.gate is not None for b in program.spec.branches)
        assert [p.open_branches for p in measured][:2] == [gates, 0]


@pytest.mark.parametrize("kind", ["t2t_performer", "t2t_transformer"])
def test_t2t_stems(kind: Any, tmp_path: Path) -> None:
    stem = StemSpec(kind=kind, patch=16, prefix=1, norm=False, token_dim=16)
    spec = dataclasses.replace(tiny_spec(gated=True, image=(64, 64)), stem=stem)
    model = write(Program(spec=spec, weights=tiny_weights(spec)), tmp_path)
    made, measured = bound(model), measure_arena(model, tiny_images(spec, 1))
    assert [slacks(made, path) for path in measured] == [{made.bound.io_bytes - 64 * 64 * 3}, {0}, {0}]


ADAPTIVE: tuple[dict[str, Any], ...] = (
    {"tokens": "1:0-27@0.85,2:3-17@0.8,3:1"},
    {"tokens": "1:0-32@0.85,2:0-32@0.83,3:0-32@0.85"},
    {"tokens": "1:2-32@0.85,3:0-13@0.85", "gated": True, "gate_pool": "mean", "prefix": 0, "skip": True},
)


@pytest.mark.parametrize("options", ADAPTIVE)
def test_sizes_that_follow_the_image_stay_below_the_bound(options: dict[str, Any], tmp_path: Path) -> None:
    """Node by node, for most, fewest and drawn numbers of tokens; under a cap of the bound one run after the other."""
    program = tiny_program(depth=4, image=(64, 64), dim=64, **options)
    image = tiny_images(program.spec, 1)
    model = write(program, tmp_path)
    made = bound(model)
    efforts = {f"{index}": effort for index, effort in enumerate(drawn_efforts())}
    measured = measure_arena(model, image, efforts)
    assert len(measured) == len(efforts) and check_bound(made, measured).paths
    # Loading is in the peak of the first run alone.
    assert max(p.peak_bytes for p in measured[1:]) > 0.9 * (made.in_use_bytes - made.bound.scratch_bytes)
    assert run_capped(model, made, image, efforts=drawn_efforts()).passed
    assert not run_capped(
        model, made, image, efforts=drawn_efforts(), cap_bytes=made.bound.arena_bytes * 9 // 10
    ).passed


@pytest.mark.parametrize("options", ADAPTIVE[:2])
def test_a_run_needs_the_room_that_its_replay_does_to_the_byte(options: dict[str, Any], tmp_path: Path) -> None:
    """What a kernel takes for itself moves its output, and is not in use when it ends: only a tight cap shows it."""
    program = tiny_program(depth=4, image=(64, 64), dim=64, **options)
    image, model = tiny_images(program.spec, 1), write(program, tmp_path)
    graph, made = optimised(model), bound(model)
    main, way, steps = main_frame(graph), 0, list[Any]()
    for stage in stages(graph, main, 10**6):
        # The image that merges as few as it may.
        (variant,) = (v for v in stage.entries[way] if stage.counts[v] == 0)
        steps += stage.variants[variant]
        way = stage.ends[variant]
    run = Stage(variants=(tuple(steps),), counts=(0,), entries=((0,),), ends=(0,))
    replay = Replay(main, (run,))
    room = next(n for n in range(made.bound.activations_bytes // 2, 10**6, ALIGN_BYTES) if replay.fits(n))
    for more, passes in ((0, True), (-ALIGN_BYTES, False)):
        cap = made.arena_weights_bytes + room + more
        assert run_capped(model, made, image, efforts=(np.inf,), cap_bytes=cap).passed == passes


def test_rules_that_leave_too_few_tokens_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were fewer tokens left by the rules than can be, later buffers would be too small."""
    program = tiny_program(depth=4, image=(64, 64), tokens="1:0-27@0.85,2:3-17@0.8")
    model = write(program, tmp_path)
    measured = measure_arena(model, tiny_images(program.spec, 1))
    monkeypatch.setitem(shapes.RULES, "Slice", too_short)
    with pytest.raises(BoundError, match="does not hold"):
        check_bound(bound(model), measured)


def too_short(node: Any) -> tuple[shapes.Value, ...]:
    (value,) = shapes._slice(node)
    computed = any(each is not None and each.least is not None for each in node.inputs)
    return (dataclasses.replace(value, shape=(max(value.shape[0] - 24, 1),)) if computed else value,)


def test_of_too_many_combinations_the_bound_still_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program(depth=4, image=(64, 64), dim=64, **ADAPTIVE[0])
    model, image = write(program, tmp_path), tiny_images(program.spec, 1)
    exact = bound(model)
    monkeypatch.setattr(memory_bound, "MOST_RUNS", 4)
    loose = bound(model)
    assert loose.in_use_bytes == exact.in_use_bytes and loose.bound.arena_bytes > exact.bound.arena_bytes
    assert run_capped(model, loose, image, efforts=drawn_efforts()).passed


def test_the_parts_add_up_and_branches_are_named(tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    made = bound(fuse(assemble(program))[0])
    assert made == bound(write(program, tmp_path))
    parts = ("weights_bytes", "activations_bytes", "scratch_bytes", "fragmentation_bytes", "io_bytes")
    assert made.bound.bound_bytes == sum(getattr(made.bound, name) for name in parts)
    assert [name for name, _, _ in made.branches] == [b.name for b in program.spec.branches]
    assert all(opened > 0 and skipped == 0 for _, opened, skipped in made.branches)
    assert made.main_frame_bytes <= made.bound.activations_bytes
    assert made.main_frame_bytes + max(opened for _, opened, _ in made.branches) >= made.bound.activations_bytes


def test_all_open_run_passes_at_the_bound_and_fails_just_below_what_is_in_use(tmp_path: Path) -> None:
    program = tiny_program(gated=True, dim=96, heads=3, image=(64, 64))
    image = tiny_images(program.spec, 1)
    model = write(program, tmp_path)
    made = bound(model)
    assert run_capped(model, made, image).passed
    held = made.bound.io_bytes - image.nbytes
    below = run_capped(model, made, image, cap_bytes=made.in_use_bytes - held - 256)
    assert not below.passed
    assert "Available memory" in below.error


def test_an_operator_without_a_rule_is_an_error() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4])
    node = helper.make_node("Erf", ["image"], ["logits"], name="erf")
    graph = helper.make_graph(
        [node], "g", [image], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(BoundError, match="no shape rule for operator Erf"):
        bound(model)


def test_an_input_without_a_fixed_shape_is_an_error() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("Relu", ["image"], ["logits"], name="relu")
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([node], "g", [image], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(BoundError, match="no fixed shape"):
        bound(model)


def test_a_model_that_does_not_load_is_one_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(BoundError, match="cannot load the model whose memory"):
        bound(broken)


FEW_TOKENS: dict[str, Any] = {"dim": 64, "hidden": 256, "image": (16, 16)}


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_with_few_tokens_loading_needs_more_than_any_run(gated: bool, tmp_path: Path) -> None:
    program = tiny_program(gated=gated, **FEW_TOKENS)
    image = tiny_images(program.spec, 1)
    model = write(program, tmp_path, quantized(program.spec))
    made, measured = bound(model), measure_arena(model, image)
    copy, outputs = 256 * 64, made.bound.io_bytes - image.nbytes
    running = made.bound.activations_bytes + outputs
    assert running < copy <= running + made.bound.scratch_bytes
    assert check_bound(made, measured).paths[0].ratio < 1.1
    assert run_capped(model, made, image).passed
    less = made.bound.arena_bytes - made.bound.scratch_bytes
    forgotten = dataclasses.replace(made, bound=dataclasses.replace(made.bound, arena_bytes=less, scratch_bytes=0))
    assert not run_capped(model, forgotten, image).passed
    if not gated:  # with gates the last weights packed are so small that a run has more in use than loading
        assert measured[0].peak_bytes > max(in_use for _, in_use in measured[0].nodes)
        with pytest.raises(BoundError, match="is above the bound"):
            check_bound(forgotten, measured)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Depths, widths of every remainder, a handful of tokens to hundreds, registers, gates, skip rows, what is gone."""
    heads, patch = draw(st.integers(1, 4)), draw(st.sampled_from((2, 7, 8)))
    depth, prefix = draw(st.integers(1, 12)), draw(st.integers(0, 5))
    side = st.integers(1, 14).map(lambda n: patch * n)
    names = [f"b{block:02d}_{kind}" for block in range(depth) for kind in ("mhsa", "ffn")]
    return tiny_program(
        depth=depth,
        dim=heads * draw(st.integers(1, 40)),
        heads=heads,
        hidden=draw(st.integers(1, 300)),
        classes=draw(st.integers(1, 300)),
        image=(draw(side), draw(side)),
        patch=patch,
        prefix=prefix,
        stem_norm=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        gated=draw(st.booleans()),
        gate_pool=draw(st.sampled_from(("prefix", "mean"))) if prefix else None,
        skip=draw(st.booleans()),
        removed=tuple(draw(st.lists(st.sampled_from(names), max_size=3, unique=True))),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(program=programs(), bits=st.sampled_from((None, None, 7, 8)), name=st.sampled_from(("model.onnx", "model.ort")))
def test_drawn_models_stay_within_their_bound_on_every_path_tried(program: Program, bits: Any, name: str) -> None:
    plan = dataclasses.replace(quantized(program.spec, outliers=False), weight_bits=bits) if bits else None
    image, set_as = tiny_images(program.spec, 1), backend_settings(weight_bits=bits or 7)
    with tempfile.TemporaryDirectory() as folder:
        compile(assemble(program, plan), Path(folder))
        made = bound(Path(folder) / "model.onnx")
        # Every path is run twice: what a run leaves behind is there when the next begins.
        efforts = {"all_open": np.inf, "all_skipped": -np.inf, "more": 1.0, "real": 0.0, "less": -1.0}
        again = {f"{path} again": effort for path, effort in efforts.items()}
        check_bound(made, measure_arena(Path(folder) / name, image, {**efforts, **again}, settings=set_as))
        capped = run_capped(Path(folder) / name, made, image, settings=set_as)
    assert capped.passed, capped.error


@pytest.mark.parametrize("bits", [None, 7, 8])
@pytest.mark.parametrize(("dim", "hidden"), [(3, 4), (6, 16), (8, 15)])
def test_weights_of_a_few_bytes_are_held_twice(dim: int, hidden: int, bits: Any, tmp_path: Path) -> None:
    program = tiny_program(gated=True, dim=dim, heads=1, hidden=hidden, depth=6)
    plan = dataclasses.replace(quantized(program.spec), weight_bits=bits) if bits else None
    model = write(program, tmp_path, plan)
    made, measured = bound(model), measure_arena(model, tiny_images(program.spec, 1))
    check_bound(made, measured)
    # At most a weight of the main graph is counted that the runtime does release; and rows padded to 64, as with AMX,
    # where other CPUs pad to 4.
    most = 1.1 if bits is None else 2 if "amx_int8" in cpu_flags() else 4
    assert check_bound(made, measured).paths[1].ratio < most


def test_packed_sizes() -> None:
    assert packed_bytes(192, 1000, int8=False) == 4 * 192 * 1008
    assert packed_bytes(192, 576, int8=True) == 192 * 576 + 4 * 576
    assert packed_bytes(37, 48, int8=True) == 64 * 48 + 4 * 48


def test_effort_at_zero_is_the_real_path(tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    model = write(program, tmp_path)
    paths = measure_arena(model, tiny_images(program.spec, 1), {"real": 0.0, "half": np.inf})
    assert paths[0].open_branches < paths[1].open_branches == 4


def test_weights_beside_the_model_bound_it_alike() -> None:
    program = tiny_program(gated=True, dim=64)
    plan = quantized(program.spec)
    assert bound(*detached(program, plan)) == bound(assemble(program, plan))
