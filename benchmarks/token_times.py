"""What merging tokens saves in time and memory on every runtime, beside what MACs say.

    python -m benchmarks.token_times DENSE MERGED... --images DIR_OR_TAR -o reports/reference

DENSE and MERGED are folders of Programs, such as `edgevit compress` writes. Each is built for every target as
`edgevit build` does, into --work, and all run in turns on the same images with one thread; a time is process CPU time
over the dense build's within the same round. Programs whose number of tokens follows the image are left out where the
runtime saves no time with them. Rows of a target are kept in token-times.json until it is measured again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.backends import Candidate, Case, build, quantized
from benchmarks.kept import read_rows
from benchmarks.timing import Ratio, Times, interleave
from edgevit.backends import Build, Runner, backend, desk
from edgevit.images.image_set import load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import load_program
from edgevit.program.tokens import write_plan
from edgevit.schema.target import Target, load_target
from edgevit.util.strict_json import dumps, write_atomic

TARGETS = ("x86-64-onnxruntime", "x86-64-openvino", "x86-64-avx512vnni-tvm")
CALIBRATION, TIMED = 64, 20
RESAMPLED = 1000
PRECISE = re.compile(r"@(-?[0-9.e-]+)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One merged Program on one target: MACs, time and activations over the dense build's.

    `macs` is the mean over the images that were timed, `time` that of the medians of their rounds, `rounds` in all, and
    `low` and `high` its 95 % interval; `activations` is what the memory bound says of them; `load` the machine's load
    average.
    """

    model: str
    target: str
    plan: str
    macs: float
    time: float
    low: float
    high: float
    activations: float
    dense_activations_bytes: int
    rounds: int
    load: float


def rows_of(target: Target, cases: Sequence[Case], rounds: int) -> list[Row]:
    """Build all cases, the dense one first, and time them in turns."""
    built = {case.key: build(case, target) for case in cases}
    runners = {key: candidate.load() for key, candidate in built.items()}
    images = cases[0].evaluation.images
    macs = [_macs(runners[case.key], case, images) for case in cases]
    held = [_activations(built[case.key], case, target) for case in cases]
    times = interleave({key: _once(runner, images) for key, runner in runners.items()}, len(images), rounds)
    dense = total_macs(cases[0].program.spec)
    return [
        _row(case, target, times, cases[0].key, spent / dense, (bytes_, held[0]))
        for case, spent, bytes_ in zip(cases[1:], macs[1:], held[1:], strict=True)
    ]


def _row(
    case: Case, target: Target, times: dict[str, Times], dense: str, macs: float, activations: tuple[int, int]
) -> Row:
    found = mean_ratio(times[case.key], times[dense], len(case.evaluation.images))
    return Row(
        model=case.key,
        target=target.name,
        plan=write_plan(case.program.spec),
        macs=macs,
        time=found.value,
        low=found.low,
        high=found.high,
        activations=activations[0] / activations[1],
        dense_activations_bytes=activations[1],
        rounds=len(times[dense].cpu_ms),
        load=os.getloadavg()[0],
    )


def mean_ratio(times: Times, base: Times, images: int) -> Ratio:
    """Return the mean over images of the median over the rounds of each, so that it is held against mean MACs.

    Its 95 % interval is that of rounds drawn again for every image.
    """
    quotients = np.array(times.cpu_ms) / np.array(base.cpu_ms)
    own = [quotients[index::images] for index in range(min(images, len(quotients)))]
    draw = np.random.default_rng(0)
    drawn = [np.median(draw.choice(each, (RESAMPLED, len(each))), axis=1) for each in own]
    low, high = np.percentile(np.mean(drawn, axis=0), (2.5, 97.5))
    return Ratio(value=float(np.mean([np.median(each) for each in own])), low=float(low), high=float(high))


def _once(runner: Runner, images: np.ndarray) -> Callable[[int], object]:
    return lambda index: runner.run(images[index][None])


def _macs(runner: Runner, case: Case, images: np.ndarray) -> float:
    spec = case.program.spec
    runs = [runner.answer(image[None]) if spec.adaptive else runner.run(image[None]) for image in images]
    return float(np.mean([run_macs(spec, run[1], *run[2:]) for run in runs]))


def _activations(built: Candidate, case: Case, target: Target) -> int:
    program, plan = quantized(case, target)
    made = Build(program=case.program, plan=plan, model=assemble(program, plan), target=target, folder=built.folder)
    evidence = desk(target.backend).memory(made, case.evaluation.images[:1], {}, runs=False)
    return evidence.detail.bound.activations_bytes


def table(rows: Sequence[Row]) -> str:
    lines = [
        "# Time and memory of merged tokens, beside their MACs",
        "",
        "`python -m benchmarks.token_times DENSE MERGED... --images DIR_OR_TAR`",
        "",
        "All over the dense int8 build's for the same target. Time: process CPU time of one thread, of rounds in turns "
        "the median for every image, and their mean, with its 95 % interval. A plan 5:53,7:64 merges 53 pairs after "
        "the attention of block 5, counted from 1, and 64 after that of block 7; with a threshold, 5:0-70@1.77, the "
        "number follows the image, and MACs are the mean over the timed images. Activations: as the memory bound has "
        "them.",
        "",
        "| Program | target | plan | MACs | time | above | activations | rounds | load |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        plan = PRECISE.sub(lambda threshold: f"@{float(threshold[1]):.3f}", r.plan)
        lines.append(
            f"| {r.model} | {r.target} | {plan} | {r.macs:.3f} | {r.time:.3f} ({r.low:.3f} to {r.high:.3f}) | "
            f"{100 * (r.time - r.macs):.1f} points | {r.activations:.2f} of {r.dense_activations_bytes / 1e6:.2f} MB | "
            f"{r.rounds} | {r.load:.1f} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("programs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--images", "source", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("--rounds", default=100, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/token-times"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(
    programs: tuple[Path, ...], source: Path, targets: tuple[str, ...], rounds: int, work: Path, output: Path
) -> None:
    """Build and time the Programs, the first of which merges nothing; write token-times.json and .md."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "token-times.json"
    rows = read_rows(file, Row, "delete it, and all rows are measured anew")
    loaded = {path.name: load_program(path) for path in programs}
    image = next(iter(loaded.values())).spec.image
    calibration, timed = load_images(source, image, limit=CALIBRATION), load_images(source, image, limit=TIMED)
    for name in targets:
        target = load_target(name)
        cases = []
        for key, program in loaded.items():
            if program.spec.adaptive and backend(target.backend).FOLLOWING_COSTS:
                continue
            (work / key).mkdir(parents=True, exist_ok=True)
            cases.append(Case(key=key, program=program, calibration=calibration, evaluation=timed, folder=work / key))
        rows = [row for row in rows if row.target != name] + rows_of(target, cases, rounds)
        write_atomic(file, dumps({"rows": [asdict(row) for row in rows]}))
        write_atomic(output / "token-times.md", table(rows))


if __name__ == "__main__":
    main()
