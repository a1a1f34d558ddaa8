"""Where ONNX Runtime's instructions go in a dense int8 ViT-Ti on an ARM processor, operator by operator, counted.

    edgevit device setup qemu
    python -m benchmarks.arm_operators -o reports/reference

Every node of the runtime's own optimised graph, on that processor, is run once more alone, with what an empty run takes
left out; beside it the same work by other operators of the runtime. Counts follow from shapes: weights, images and
scales are drawn, and the twelve blocks are one that is whole eleven times, and the last, whose head reads one token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import helper

from benchmarks.arm import TIMEOUT_S, dense_blocks
from benchmarks.arm_other_ways import ways
from edgevit.backends.onnxruntime.arm import ARCH, DOMAIN
from edgevit.backends.onnxruntime.frames import main_frame
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.backends.onnxruntime.shapes import Value
from edgevit.devices.qemu import emulator, userland
from edgevit.devices.qemu.emulator import Counter
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from edgevit.util.atomic import scratch
from edgevit.util.strict_json import dumps, write_atomic

CPU = "cortex-a76"
DEPTH = 12
FORMS = {"standard": "", "lighter": ARCH}
SCALE = 0.02  # of every quantizer: coarse for GELU, as on real models
GUEST = """
import ctypes, json, numpy, onnxruntime
call = ctypes.CDLL(None).syscall
for name, dump in json.load(open("request.json")):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if dump:
        options.optimized_model_filepath = f"{name}.optimised"
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    fed = dict(numpy.load(f"{name}.npz"))
    session.run(None, fed)
    call(0x7ffe, 1)
    session.run(None, fed)
    call(0x7ffe, 2)
"""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a form's optimised graph of two blocks, the instructions it executes alone, and those that are dots.

    `block` is 0 for the whole one, 1 for the last one, None outside.
    """

    form: str
    name: str
    operator: str
    block: int | None
    instructions: int
    dots: int


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do a work of a whole block, and the instructions it executes."""

    work: str
    operators: str
    instructions: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """All counts of one run: `whole` is what two blocks execute in one session, by form; `empty` a run of nothing."""

    cpu: str
    emulator: str
    runtime: str
    empty: int
    whole: dict[str, int]
    nodes: tuple[Node, ...]
    ways: tuple[Way, ...]


Fed = tuple[onnx.ModelProto, Mapping[str, np.ndarray]]


def plan_of(spec: ProgramSpec) -> QuantPlan:
    """Return every Linear int8 with drawn scales, no outliers."""
    linears = (
        LinearPlan(name=n, int8=True, scale=1.0 if n == "stem" else SCALE, zero_point=0 if n == "stem" else 128)
        for n in linear_names(spec)
    )
    return QuantPlan(linears=tuple(linears))


def forms(program: Program) -> dict[str, Fed]:
    """Return both forms of the int8 model with an image."""
    spec = program.spec
    image = np.random.default_rng(0).integers(0, 255, (1, spec.image.height, spec.image.width, 3)).astype(np.uint8)
    model = assemble(program, plan_of(spec))
    return {form: (fuse(model, arch=arch)[0], {"image": image}) for form, arch in FORMS.items()}


def alone(node: onnx.NodeProto, graph: onnx.GraphProto, values: Mapping[str, Value]) -> Fed:
    """Return a model of one node, what it reads and is not constant drawn."""
    constants = [t for t in graph.initializer if t.name in node.input]
    held = {t.name for t in constants}
    read = [name for name in dict.fromkeys(node.input) if name and name not in held]
    draw = np.random.default_rng(0)
    fed = {name: _drawn(values[name], draw) for name in read}
    inputs = [helper.make_tensor_value_info(name, values[name].kind, values[name].shape) for name in read]
    outputs = [helper.make_tensor_value_info(name, values[name].kind, values[name].shape) for name in node.output]
    made = helper.make_graph([node], "alone", inputs, outputs, initializer=constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10), fed


def _drawn(value: Value, draw: np.random.Generator) -> np.ndarray:
    kind = helper.tensor_dtype_to_np_dtype(value.kind)
    if kind == np.bool_:
        return np.ones(value.shape, bool)
    if np.issubdtype(kind, np.integer):
        return draw.integers(0, 100, value.shape).astype(kind)
    return draw.normal(size=value.shape).astype(kind)


def empty() -> Fed:
    """Return a model that does nothing."""
    one = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", one[:1], one[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, {"x": np.zeros(1, np.float32)}


def count(
    place: emulator.Userland, models: Sequence[Fed], folder: Path, *, dump: bool, cpu: str = CPU
) -> list[dict[str, int]]:
    """Run models on the emulated processor; return what each executes in its second run, by class."""
    names = [f"{index}.onnx" for index in range(len(models))]
    for name, (model, fed) in zip(names, models, strict=True):
        (folder / name).write_bytes(model.SerializeToString())
        arrays: dict[str, Any] = dict(fed)
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "request.json").write_text(json.dumps([(name, dump) for name in names]))
    return executed(place, GUEST, folder, cpu)


def executed(
    place: emulator.Userland, guest: str, folder: Path, cpu: str, paths: Sequence[Path] = ()
) -> list[dict[str, int]]:
    """Run Python in the emulator; return what it executes between each of its pairs of marks, by class."""
    out = folder / "counts"
    done = emulator.run(
        place,
        emulator.parse(f"qemu:{cpu}"),
        ["-c", guest],
        folder=folder,
        paths=paths,
        counts=Counter(out=out),
        timeout_s=TIMEOUT_S,
    )
    if done.returncode:
        raise click.ClickException(emulator.last_words(done.stderr))
    classes, *lines = (line.split() for line in out.read_text(encoding="ascii").splitlines())
    return [dict(zip(classes, map(int, line), strict=True)) for line in lines]


def measure(place: emulator.Userland) -> Result:
    """Count both forms whole, every node of them alone, and other ways to do the same."""
    models = forms(dense_blocks())
    with scratch() as folder:
        whole = count(place, list(models.values()), folder, dump=True)
        graphs = {
            form: onnx.load(folder / f"{index}.onnx.optimised", load_external_data=False).graph
            for index, form in enumerate(models)
        }
        nodes, fed = [], [empty()]
        for form, graph in graphs.items():
            values = main_frame(graph).values
            nodes += [(form, node) for node in graph.node]
            fed += [alone(node, graph, values) for node in graph.node]
        others = ways()
        counts = count(place, [*fed, *(each.fed for each in others)], folder, dump=False)
    nothing, *rest = (sum(each.values()) for each in counts)
    found = tuple(
        Node(
            form=form,
            name=node.output[0],
            operator=node.op_type,
            block=_block(node.output[0]),
            instructions=max(executed - nothing, 0),
            dots=classes["dot"],
        )
        for (form, node), executed, classes in zip(nodes, rest, counts[1:], strict=False)
    )
    return Result(
        cpu=CPU,
        emulator=place.emulator_version,
        runtime=f"onnxruntime {place.packages['onnxruntime']}",
        empty=nothing,
        whole={form: sum(each.values()) for form, each in zip(models, whole, strict=True)},
        nodes=found,
        ways=tuple(
            Way(work=each.work, operators=each.operators, instructions=executed - nothing)
            for each, executed in zip(others, rest[len(nodes) :], strict=True)
        ),
    )


def _block(name: str) -> int | None:
    return int(name[1:3]) if name[:1] == "b" and name[1:3].isdigit() else None


KINDS = {
    "LayerNormalization": "LayerNorm, two",
    "QuantizeLinear": "quantizers, four",
    "Gelu": "GELU",
    "Softmax": "softmax",
    "Add": "residual additions, two",
}
INT8 = ("QGemm", "MatMulIntegerToFloat")


def kind(node: Node) -> str:
    """Return the row of the table that a node belongs to."""
    layer, _, part = node.name.partition("/")
    if node.block is None:
        return "stem, head"
    if node.operator in INT8:
        own = layer.partition(".")[2]
        return f"{own}: product" if own in ("proj", "fc1", "fc2") else "queries, keys, values: three products"
    if node.operator in ("MatMul", "FusedMatMul"):
        return f"attention's {part.partition('_')[0]}: product, float"
    return KINDS.get(node.operator, "copies of rows")


def total(nodes: Sequence[Node], form: str, row: str | None = None) -> tuple[int, int]:
    """Return what a whole block executes in one row of the table, all by default, and what all `DEPTH` blocks do."""
    own = [n for n in nodes if n.form == form and row in (None, kind(n))]
    first, last, outside = (sum(n.instructions for n in own if n.block == block) for block in (0, 1, None))
    return first, (DEPTH - 1) * first + last + outside


def render(result: Result) -> str:
    """Return the tables as Markdown."""
    nodes = result.nodes
    rows = sorted({kind(n) for n in nodes}, key=lambda row: -total(nodes, "standard", row)[1])
    lines = [
        "# Where the instructions of int8 go on ARM, operator by operator",
        "",
        f"{result.runtime}, {result.cpu}, one thread, {result.emulator}: counted, never timed; in millions.",
        f"A dense int8 ViT-Ti at 224 x 224 (DeiT-Ti has the same shapes) of {DEPTH} blocks; of the last one only the",
        "class token is read. Targets for x86-64 get the standard operators, those for aarch64 the lighter ones.",
        "Regenerate: `python -m benchmarks.arm_operators -o reports/reference`.",
        "",
        "| what | a whole block: standard | lighter | all blocks: standard | lighter |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in [*rows, None]:
        (block, model), (light_block, light) = (total(nodes, form, row) for form in FORMS)
        shown = [_millions(n) for n in (block, light_block, model, light)]
        lines.append(f"| {row or 'sum'} | {' | '.join(shown)} |")
    standard, light = (total(nodes, form)[1] for form in FORMS)
    dots = sum(n.dots * (DEPTH - 1 if n.block == 0 else 1) for n in nodes if n.form == "lighter")
    together = sum(result.whole.values())
    missed = together - sum(n.instructions for n in nodes)
    lines += [
        "",
        f"The lighter form executes {1 - light / standard:.1%} less. Its dot products alone are {_millions(dots)} M.",
        "Every node was counted alone. Of what two blocks execute in one session, "
        f"{missed / together:.2%} is in no node: the session itself.",
        "",
        "## Other operators for the same work",
        "",
        "Of one whole block, each with all that it needs from the same input to the same output.",
        "",
        "| work | operators | M |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {way.work} | {way.operators} | {_millions(way.instructions)} |" for way in result.ways]
    return "\n".join(lines) + "\n"


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f}"


@click.command()
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    """Count, and write arm-operators.json and arm-operators.md."""
    out.mkdir(parents=True, exist_ok=True)
    result = measure(userland.installed())
    write_atomic(out / "arm-operators.json", dumps(result))
    write_atomic(out / "arm-operators.md", render(result))


if __name__ == "__main__":
    main()
