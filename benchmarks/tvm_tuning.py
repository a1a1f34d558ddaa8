"""Whether searching for tiles is worth its time: what `--tune` costs, finds and keeps, against the default tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backends import Case, cpu_s, quantized
from benchmarks.timing import Ratio, interleave, ratio
from edgevit.backends import tvm
from edgevit.backends.tvm.run.runner import TvmRunner
from edgevit.schema.target import Target


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search for one model's tiles that nothing was known of, and the same search once more.

    Attributes:
        model: name.
        kind: `float` or `int8`.
        allowed_s: CPU time that it may take.
        searched: distinct products that it found a tile for.
        products: all there are.
        changed: of those searched, how many are not the default table's.
        cpu_s: CPU time that it took.
        again_s: CPU time when what it found is known.
        to_default: the model's CPU time with these tiles, in units of that with the default ones.
    """

    model: str
    kind: str
    allowed_s: float
    searched: int
    products: int
    changed: int
    cpu_s: float
    again_s: float
    to_default: Ratio


def tuning(case: Case, target: Target, seconds: float, rounds: int) -> Tuning:
    """Search, search again, and time both models in turn on real images."""
    from edgevit.backends.tvm.codegen.schedules import default_tile
    from edgevit.backends.tvm.compile import library, tune
    from edgevit.backends.tvm.compile.emit import lower

    (program, plan), isa = quantized(case, target), tvm.isa_of(target)
    with tempfile.TemporaryDirectory() as folder:
        took = []
        for _ in range(2):
            begin = cpu_s()
            choose = tune.tuned(program, isa, plan, seconds, cache=Path(folder))
            took.append(cpu_s() - begin)
        kept = tune.kept(program, isa, plan, cache=Path(folder))
    images = case.evaluation.images[:rounds]

    def step(runner: TvmRunner) -> Callable[[int], object]:
        return lambda index: runner.run(images[index : index + 1])

    runners = {
        name: library.runner(lower(program, isa, plan, choose=tiles))
        for name, tiles in (("default", default_tile), ("tuned", choose))
    }
    times = interleave({name: step(runner) for name, runner in runners.items()}, len(images), rounds)
    return Tuning(
        model=case.key,
        kind="int8" if plan else "float",
        allowed_s=seconds,
        searched=len(kept),
        products=len(tune.products(program, isa, plan)),
        changed=sum(tile != default_tile(isa, product) for product, tile in kept.items()),
        cpu_s=took[0],
        again_s=took[1],
        to_default=ratio(times["tuned"], times["default"]),
    )


def table(found: Sequence[Tuning]) -> list[str]:
    """The Markdown lines."""
    lines = [
        "`--tune`: a search that nothing is known for, and the same again. Time of the model with the tiles found, in "
        "units of that with the default tables, paired on real images, median with its 95 % interval.",
        "",
        "| model | kind | allowed, s | took, s | again, s | products searched | other tiles | to default |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for t in found:
        times = f"{t.allowed_s:.0f} | {t.cpu_s:.1f} | {t.again_s:.2f}"
        lines.append(
            f"| {t.model} | {t.kind} | {times} | {t.searched} of {t.products} | {t.changed} | {t.to_default} |"
        )
    return lines
