"""Memory bounds of random Programs against what the runtimes hold: reports/reference/random-bounds.md and .json.

    python -m benchmarks.random_bounds --onnxruntime 300 --tvm 300 -o reports/reference

Random structures of 1 to 12 blocks, with gates, pruned units and branches, register tokens, one token to hundreds, odd
widths, in float and int8 of 7 and 8 bits. Each is run all open, all closed, at its own thresholds and at drawn efforts,
every path twice. The same seeds draw the same Programs; needs no data. The .json is written after every Program, and
`--resume` keeps what it holds; where there is none, it begins anew.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.kept import read_rows
from edgevit.backends import Source, tvm
from edgevit.backends import onnxruntime as ort
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.backends.onnxruntime.arena import measure_arena, run_capped
from edgevit.backends.tvm import memory_bound as tvm_bound
from edgevit.errors import BoundError, EdgevitError
from edgevit.measure.environment import cpu_flags, cpu_name
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import (
    BranchSpec,
    GateSpec,
    HeadSpec,
    ImageSpec,
    PoolKind,
    ProgramSpec,
    StemSpec,
)
from edgevit.schema.memory_bound import check_bound
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.schema.target import Target, load_target, missing_flags
from edgevit.util.progress import track
from edgevit.util.strict_json import dumps, write_atomic

EFFORTS = {"all_open": 1e9, "all_skipped": -1e9, "real": 0.0, "more": 1.0, "less": -1.0}
HALF = (0.5, 0.5, 0.5)
POOLS: tuple[PoolKind, ...] = ("prefix", "mean")
TARGETS = {
    8: ("x86-64-avx512vnni-tvm", "x86-64-avxvnni-tvm", "x86-64-v3-tvm", "x86-64-v2-tvm"),
    7: ("x86-64-v4-tvm", "x86-64-v3-tvm", "x86-64-v2-tvm"),
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One Program on one runtime. `ratio` is bound over measured peak; `fault` is empty where the bound held."""

    seed: int
    runtime: str
    bits: int | None
    blocks: int
    tokens: int
    dim: int
    gates: int
    ratio: float | None
    fault: str


def draw_program(seed: int) -> Program:
    """A random Program of a random structure; the same for the same seed."""
    rng = np.random.default_rng(seed)
    heads, patch = int(rng.integers(1, 5)), int(rng.choice([2, 4, 7, 8, 16]))
    dim, prefix = heads * int(rng.integers(1, 40)), int(rng.integers(0, 6))
    sides = (patch * int(rng.integers(1, 15)), patch * int(rng.integers(1, 15)))
    gated, pools = bool(rng.random() < 0.6), POOLS if prefix else POOLS[1:]
    gate = GateSpec(pool=pools[int(rng.integers(len(pools)))], threshold=0.0) if gated else None
    qk_norm, skip = bool(rng.random() < 0.3), bool(rng.random() < 0.5)
    branches = []
    for block in range(int(rng.integers(1, 13))):
        for kind, total in (("mhsa", heads), ("ffn", int(rng.integers(1, 400)))):
            kept = np.flatnonzero(rng.random(total) < (0.0 if rng.random() < 0.1 else 0.8))
            shared = {"units_total": total, "kept": tuple(map(int, kept)), "gate": gate if kept.size else None}
            shared |= {"name": f"b{block:02d}_{kind}", "skip": skip and (gated or not kept.size)}
            inner = {"head_dim": dim // heads, "scale": (dim // heads) ** -0.5, "qk_norm": qk_norm}
            branches.append(BranchSpec(**shared, kind=kind, **(inner if kind == "mhsa" else {})))  # type: ignore[arg-type]
    spec = ProgramSpec(
        name=f"random {seed}",
        image=ImageSpec(
            height=sides[0], width=sides[1], mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1, interpolation="bicubic"
        ),
        dim=dim,
        norm_eps=1e-6,
        qk_norm_eps=1e-6,
        stem=StemSpec(kind="patch", patch=patch, prefix=prefix, norm=bool(rng.random() < 0.3)),
        branches=tuple(branches),
        head=HeadSpec(
            pool="prefix" if prefix else "mean",
            prefix=1,
            norm=bool(prefix),
            pooled_norm=not prefix,
            classes=int(rng.integers(1, 300)),
        ),
    )
    arrays = {
        name: (rng.standard_normal(shape) / max(shape[0], 1) ** 0.5).astype(np.float32)
        for name, shape in expected_shapes(spec).items()
    }
    return Program(spec=spec, weights=arrays)


def plan_for(spec: ProgramSpec, bits: int | None, *, attention: bool) -> QuantPlan | None:
    """All Linears int8 with guessed scales: memory does not depend on them."""
    if bits is None:
        return None
    linears = tuple(
        LinearPlan(name=name, int8=True, scale=1.0 if name == "stem" else 0.05, zero_point=0 if name == "stem" else 128)
        for name in linear_names(spec)
    )
    names = attention_names(spec) if attention else ()
    return QuantPlan(linears=linears, weight_bits=8 if bits == 8 else 7, attentions=names)


def try_onnxruntime(seed: int) -> Tried:
    """Every path twice, node by node, and the all-open one under a cap."""
    program, bits = draw_program(seed), (None, None, 7, 8)[seed % 4]
    image = _image(program.spec, seed)
    ratio, fault = None, ""
    settings = ort.entries(bits or 7)
    with tempfile.TemporaryDirectory() as folder:
        try:
            ort.compile(
                assemble(program, plan_for(program.spec, bits, attention=False)), Path(folder), formats=("onnx",)
            )
            model = Path(folder) / ort.MODEL
            made = ort_bound.bound(model)
            again = {f"{name} again": effort for name, effort in EFFORTS.items()}
            measured = measure_arena(model, image, {**EFFORTS, **again}, settings=settings)
            ratio = made.bound.arena_bytes / max(path.peak_bytes for path in measured)
            check_bound(made, measured)
            capped = run_capped(model, made, image, settings=settings)
            fault = "" if capped.passed else f"under the cap: {capped.error}"
        except EdgevitError as error:
            fault = str(error).splitlines()[0]
    return _tried(program, seed, "onnxruntime", bits, ratio, fault)


def try_tvm(seed: int) -> Tried:
    """Every path in a fresh process of the C++ runner."""
    program, bits = draw_program(seed), (None, 7, 8)[seed % 3]
    target = _target(bits)
    ratio, fault = None, ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            plan = plan_for(program.spec, bits, attention=True)
            source = Source(program=program, plan=plan, model=assemble(program, plan), target=target)
            tvm.build(source, Path(folder))
            needed = tvm.memory(Path(folder))
            made = tvm_bound.bound(arena=needed.arena, io=needed.inputs + needed.outputs, weights=needed.weights)
            image = _image(program.spec, seed)
            efforts: Mapping[str, float] = EFFORTS if program.spec.gated else {"real": 0.0}
            found = [tvm.touched(Path(folder), image, effort)[0] for effort in efforts.values()]
            peak = max(touched for touched in found if touched is not None)
            limit = made.bound.arena_bytes
            ratio = limit / max(peak, needed.inputs)
            fault = "" if peak <= limit else f"{peak} bytes touched, the bound says {limit}"
        except EdgevitError as error:
            fault = str(error).splitlines()[0]
    return _tried(program, seed, "tvm", bits, ratio, fault)


def _target(bits: int | None) -> Target:
    for name in TARGETS[8 if bits == 8 else 7]:
        target = load_target(name)
        if not missing_flags(target, cpu_flags()):
            if not bits:
                return dataclasses.replace(target, int8=False, attention="float32")
            # Targets of CPUs without VNNI have 7 bits; kernels for 8 are there.
            return dataclasses.replace(target, weight_bits=8, int16_products=2) if bits == 8 else target
    raise BoundError(f"this CPU runs none of {', '.join(TARGETS[8 if bits == 8 else 7])}")


def _image(spec: ProgramSpec, seed: int) -> np.ndarray:
    shape = (1, spec.image.height, spec.image.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _tried(program: Program, seed: int, runtime: str, bits: int | None, ratio: float | None, fault: str) -> Tried:
    spec = program.spec
    return Tried(
        seed=seed,
        runtime=runtime,
        bits=bits,
        blocks=len(spec.branches) // 2,
        tokens=spec.tokens,
        dim=spec.dim,
        gates=sum(b.gate is not None for b in spec.branches),
        ratio=ratio,
        fault=fault,
    )


def table(tried: list[Tried], command: str) -> str:
    """The rows as a markdown document: one line per runtime and number of bits, then every fault."""
    lines = [
        "# Memory bounds of random Programs",
        "",
        f"`{command}` on {cpu_name(Path('/'))}. Bound over the largest peak of all paths of a Program, every path "
        "run twice (ONNX Runtime: in one process, node by node, then all open under an arena capped at the bound; TVM: "
        "each path in a fresh process of the C++ runner). The least ratio shows how near a bound comes to failing, the "
        "largest how loose it gets: TVM's holds 65 kB for state and stack, more than a tiny Program touches.",
        "",
        "| runtime | weights | Programs | held | least ratio | median | largest |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (runtime, bits), count in sorted(Counter((t.runtime, t.bits or 0) for t in tried).items()):
        rows = [t for t in tried if (t.runtime, t.bits or 0) == (runtime, bits)]
        ratios = [t.ratio for t in rows if t.ratio is not None]
        figures = [f"{f(ratios):.3f}" for f in (min, np.median, max)] if ratios else ["-"] * 3
        held = sum(not t.fault for t in rows)
        lines.append(
            f"| {runtime} | {f'int8, {bits} bits' if bits else 'float'} | {count} | {held} | {' | '.join(figures)} |"
        )
    lines += ["", *(f"- seed {t.seed}, {t.runtime}: {t.fault}" for t in tried if t.fault)]
    return "\n".join(lines).rstrip() + "\n"


def read(path: Path) -> list[Tried]:
    """Return what an earlier run left; nothing where there was none.

    Raises:
        ClickException: the file is damaged, or of another version.
    """
    return read_rows(path, Tried, "run without --resume")


def _untried(kept: list[Tried], onnxruntime: int, tvm_count: int) -> Iterator[Tried]:
    """Try the first seeds of each runtime, without those that were tried already."""
    done = {(tried.runtime, tried.seed) for tried in kept}
    left = [[s for s in range(n) if (r, s) not in done] for r, n in (("onnxruntime", onnxruntime), ("tvm", tvm_count))]
    yield from (try_onnxruntime(seed) for seed in track(left[0], "Programs on ONNX Runtime"))
    yield from (try_tvm(seed) for seed in track(left[1], "Programs on TVM"))


@click.command()
@click.option("--onnxruntime", default=300, show_default=True, type=click.IntRange(0), help="Programs to try.")
@click.option(
    "--tvm", "tvm_count", default=300, show_default=True, type=click.IntRange(0), help="Programs to try there."
)
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--resume",
    is_flag=True,
    help="Keep what random-bounds.json in that folder holds, if it is there, and try the rest.",
)
def main(onnxruntime: int, tvm_count: int, out: Path, resume: bool) -> None:
    """Draw Programs, bound them, run them; exits with 34 where a bound does not hold."""
    command = f"python -m benchmarks.random_bounds --onnxruntime {onnxruntime} --tvm {tvm_count}"
    kept = out / "random-bounds.json"
    tried = read(kept) if resume else []
    out.mkdir(parents=True, exist_ok=True)
    for one in _untried(tried, onnxruntime, tvm_count):
        tried.append(one)
        write_atomic(kept, dumps(tried))
    write_atomic(out / "random-bounds.md", table(tried, command))
    failed = sum(bool(t.fault) for t in tried)
    click.echo(f"wrote {out / 'random-bounds.md'}: {len(tried) - failed} of {len(tried)} held")
    if failed:
        raise SystemExit(BoundError.exit_code)


if __name__ == "__main__":
    main()
