"""Hold a deadline by effort on a sequence of photographs, with the shipped Program as a C library.

    EDGEVIT_DATA=DIR python -m benchmarks.deadline -o reports/reference

The bundle is built for the fastest TVM target of this machine, and a small C program (deadline.c) is linked with its
library. One process runs every image densely, at the least effort and in the loop of deadline.h. The deadline is fixed
by a rule, before the loop begins: `SHARE` of the median of dense runs of the first images, which are not of the
sequence. Times are CPU time of the thread, so that other programs do not count; what they leave in caches and of a
shared core does. Dense runs all do the same work, so their spread is the machine's: of several tries (--tries) the
first one counts in which that is below `QUIET`, whatever came of the loop.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from edgevit.api.build import Job, run_build
from edgevit.build.host import fastest, runtime_versions, target_health
from edgevit.build.points import GRID
from edgevit.bundle.read import open_bundle
from edgevit.images.image_set import load_images
from edgevit.measure.environment import Snapshot, cpu_flags, environment, snapshot
from edgevit.schema.manifest import Bundle, Manifest, counts_tokens
from edgevit.schema.measurement import Environment
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from edgevit.util.strict_json import dumps, write_atomic

SOURCE = Path(__file__).with_suffix(".c")
PERCENTILE = 95
TRIED_IMAGES = 16  # to find the efforts between which work changes
FIRST_IMAGES = 100  # that fix the deadline
SHARE = 0.9  # of the dense runs' median
QUIET = 1.12  # of the dense runs: their 95th percentile over their median
NEAR = 0.1  # of the way between the least work and the dense


@dataclass(frozen=True, kw_only=True)
class Run:
    """One image: ms of CPU time dense, at the least effort and in the loop; `effort` is the loop's.

    What was left of the tokens, or ran of the branches, is `*_work`; `same`: dense run and loop name the same class.
    """

    dense_ms: float
    least_ms: float
    loop_ms: float
    effort: float
    dense_work: int
    least_work: int
    loop_work: int
    same: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything deadline.md and deadline.png are made of; `work` says what the runs count.

    `first` images fixed the deadline. `tried` runs were made, this one the last of them.
    """

    command: str
    machine: Environment
    model: str
    target: str
    images: str
    work: str
    least: float
    most: float
    deadline_ms: float
    first: int
    runs: tuple[Run, ...]
    tried: int = 1

    def ms(self, way: str) -> np.ndarray:
        """Return the times of `dense`, `least` or `loop`, `[images]`."""
        return np.array([getattr(run, f"{way}_ms") for run in self.runs])

    def late(self, way: str) -> float:
        """Return the share of images that took longer than the deadline."""
        return float((self.ms(way) > self.deadline_ms).mean())

    @property
    def spread(self) -> float:
        """Return the 95th percentile of the dense runs, which all do the same work, over their median."""
        dense = self.ms("dense")
        return float(np.percentile(dense, PERCENTILE) / np.median(dense))

    def held(self, way: str) -> bool:
        """Return whether the deadline holds at the percentile that is asked for."""
        return bool(np.percentile(self.ms(way), PERCENTILE) <= self.deadline_ms)


def compiled(bundle: Path, folder: Path) -> Path:
    """Compile deadline.c with the C library of a bundle and return the program.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
    """
    (archive,) = (bundle / "lib").glob("lib*.a")
    name = archive.stem.removeprefix("lib")
    text = SOURCE.read_text(encoding="utf-8").replace("MODEL.h", f"{name}.h")
    for case in (str.upper, str.lower):
        text = re.sub(rf"\b{case('model')}(?=_)", case(name), text)
    (folder / "deadline.c").write_text(text, encoding="utf-8")
    flags = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{archive.parent}")
    subprocess.run(["cc", *flags, "deadline.c", archive.resolve(), "-lm", "-o", "deadline"], cwd=folder, check=True)
    return folder / "deadline"


def sequence(
    program: Path, weights: Path, images: Path, first: int, least: float, most: float
) -> tuple[float, tuple[Run, ...]]:
    """Run a file of raw images in one process; return the deadline in ms, fixed by the first of them, and the rest."""
    words = (str(program), str(weights), str(images), str(SHARE), str(first), f"{least:.6f}", f"{most:.6f}")
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    deadline_ms, *lines = told.splitlines()
    return float(deadline_ms), tuple(parsed(line) for line in lines)


def parsed(line: str) -> Run:
    """Return what a line of the program tells."""
    dense_ms, least_ms, loop_ms, effort, dense, least, loop, same = line.split()
    return Run(
        dense_ms=float(dense_ms),
        least_ms=float(least_ms),
        loop_ms=float(loop_ms),
        effort=float(effort),
        dense_work=int(dense),
        least_work=int(least),
        loop_work=int(loop),
        same=same == "1",
    )


def effective(program: Path, weights: Path, images: Path) -> tuple[float, float]:
    """Return the efforts between which work changes: near the least and near the dense, by NEAR of the way.

    Raises:
        click.ClickException: effort moves nothing.
    """
    efforts = (*(-effort for effort in reversed(GRID)), 0.0, *GRID)
    work, dense = [], 0.0
    for effort in efforts:
        _, runs = sequence(program, weights, images, 1, effort, effort)
        work.append(float(np.mean([run.least_work for run in runs])))
        dense = float(np.mean([run.dense_work for run in runs]))
    return ends(efforts, work, dense)


def ends(efforts: Sequence[float], work: Sequence[float], dense: float) -> tuple[float, float]:
    """Return the dearest of the efforts that is near the least work, and the cheapest that is near the dense one."""
    least = min(work)
    if dense <= least:
        raise click.ClickException("every effort does the same work, so no deadline can be held by it")
    ways = [(done - least) / (dense - least) for done in work]
    low = max(effort for effort, way in zip(efforts, ways, strict=True) if way <= NEAR)
    return low, min((effort for effort, way in zip(efforts, ways, strict=True) if way >= 1 - NEAR), default=efforts[-1])


def render(report: Report) -> str:
    """Return the Markdown document."""
    m = report.machine
    lines = [
        "# A deadline held by effort",
        "",
        f"`{report.command}`",
        "",
        f"{m.cpu}, {m.cores} cores, {m.runtime_version}; load {m.load_average_before or 0:.1f} before, "
        f"{m.load_average_after or 0:.1f} after. {report.model} for {report.target}, as a C library; "
        f"{len(report.runs)} photographs ({report.images}) one after another in one process, on one thread.",
        "",
        f"Deadline: {report.deadline_ms:.2f} ms an image, {SHARE:g} of the median of dense runs of the {report.first} "
        "images before the sequence, in the same process: fixed by that rule before the loop began. Times are CPU time "
        "of the thread, so that other programs on the machine do not count. Every image is run densely, at the least "
        f"effort and with the loop of `deadline.h` (effort from {report.least:g} to {report.most:g}, where it changes "
        "the work; begun at the latter), in turn. Asked: dense misses the deadline, the loop holds it at the "
        f"{PERCENTILE}th percentile.",
        "",
        f"Dense runs all do the same work: that their {PERCENTILE}th percentile is {report.spread:.2f} times their "
        f"median is the machine's doing. {_tries(report)}",
        "",
        f"| way | median, ms | {PERCENTILE}th percentile, ms | longest, ms | late | {report.work}, mean | deadline |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for way, name in (("dense", "dense"), ("loop", "loop"), ("least", "least effort")):
        ms = report.ms(way)
        work = np.mean([getattr(run, f"{way}_work") for run in report.runs])
        lines.append(
            f"| {name} | {np.median(ms):.2f} | {np.percentile(ms, PERCENTILE):.2f} | {ms.max():.2f} "
            f"| {report.late(way):.1%} | {work:.1f} | {'held' if report.held(way) else 'missed'} |"
        )
    same = np.mean([run.same for run in report.runs])
    met = report.held("loop") and not report.held("dense")
    lines += [
        "",
        f"{'Met' if met else '**Missed**'}. The loop names the class of the dense run for {same:.1%} of the images. "
        f"Range of effort: the least takes {np.median(report.ms('least') / report.ms('dense')):.1%} of the dense time "
        "(median of the quotients image by image).",
        "",
        "![Time per image and effort over the sequence](deadline.png)",
    ]
    return "\n".join(lines) + "\n"


def _tries(report: Report) -> str:
    """Return how this run came to be the one that counts, as a sentence."""
    quiet = f"below {QUIET:g}, at which a machine is taken to be quiet"
    if report.spread < QUIET:
        before = f"; {report.tried - 1} tries before it were noisier" if report.tried > 1 else ""
        return f"That is {quiet}{before}."
    return f"That is not {quiet}, in {report.tried} tr{'y' if report.tried == 1 else 'ies'}: to be repeated on one."


def plot(report: Report, path: Path) -> None:
    """Draw the time per image of dense runs and of the loop with the deadline, and the loop's effort below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, efforts) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, height_ratios=(2, 1))
    dots = {"linestyle": "", "marker": ".", "markersize": 4}
    times.plot(report.ms("dense"), color="#b0b0b0", label=f"dense: {report.late('dense'):.0%} late", **dots)
    times.plot(report.ms("loop"), color="#1f6fb4", label=f"loop: {report.late('loop'):.1%} late", **dots)
    times.axhline(report.deadline_ms, color="#c0392b", label=f"deadline, {report.deadline_ms:.2f} ms")
    # Single runs that the system interrupted would flatten the rest.
    times.set_ylim(0, 1.3 * float(np.percentile(report.ms("dense"), PERCENTILE)))
    times.set_ylabel("CPU time of an image, ms")
    times.legend(loc="lower right", fontsize=8)
    efforts.plot([run.effort for run in report.runs], color="#1f6fb4", linewidth=1)
    efforts.set_ylabel("effort of the loop")
    efforts.set_xlabel("image of the sequence")
    for axis in (times, efforts):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def fastest_target() -> str:
    """Return the fastest TVM target that this machine can build and run.

    Raises:
        click.ClickException: there is none.
    """
    flags, versions = set(cpu_flags()), runtime_versions()
    for target in map(load_target, fastest()):
        if target.backend == "tvm" and target_health(target, flags, versions).runs_as_device:
            return target.name
    raise click.ClickException(
        "no TVM target can be built and run on this machine; edgevit doctor says what is missing"
    )


def measure(bundle: Bundle, source: Path, count: int, work: Path, *, tries: int = 1) -> Report:
    """Run images of `source` through a bundle's library; the first fix the deadline of the others.

    Up to `tries` times, until the machine was quiet while they ran.
    """
    manifest = bundle.manifest
    program, weights = compiled(bundle.folder, work), bundle.folder / "model.weights"
    images = load_images(source, manifest.input.preprocessing, limit=count).images
    every, some = work / "images.raw", work / "some.raw"
    every.write_bytes(images.tobytes())
    some.write_bytes(images[:TRIED_IMAGES].tobytes())
    least, most = effective(program, weights, some)
    first = min(FIRST_IMAGES, len(images) // 2)
    made = partial(
        Report,
        command=f"python -m benchmarks.deadline --images {count} --tries {tries}",
        model=manifest.name,
        target=manifest.target.name,
        images=source.name,
        work="tokens left" if counts_tokens(manifest) else "branches run",
        least=least,
        most=most,
        first=first,
    )
    for tried in range(1, tries + 1):
        before = snapshot()
        limit_ms, runs = sequence(program, weights, every, first, least, most)
        report = made(machine=_machine(manifest, before), deadline_ms=limit_ms, runs=runs, tried=tried)
        click.echo(f"try {tried}: dense runs spread by {report.spread:.2f}")
        if report.spread < QUIET:
            break
    return report


def _machine(manifest: Manifest, before: Snapshot) -> Environment:
    return environment(
        before,
        snapshot(),
        runtime="tvm",
        runtime_version=f"tvm {manifest.tools['tvm']}",
        inference_precision=manifest.target.inference_precision,
        threads=1,
    )


@click.command(epilog="Example: python -m benchmarks.deadline -o reports/reference")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="A TVM bundle (default: build one).")
@click.option("--images", "count", default=1000, show_default=True, type=click.IntRange(4), help="At most so many.")
@click.option("--tries", default=1, show_default=True, type=click.IntRange(1), help="At most, until it is quiet.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(bundle: Path | None, count: int, tries: int, out: Path) -> None:
    """Write deadline.json, deadline.md and deadline.png."""
    data = os.environ.get("EDGEVIT_DATA")
    source = Path(data) / "imagenet-val-1000.tar" if data else shipped("calibration") / "shipped.toml"
    with tempfile.TemporaryDirectory() as temporary:
        if bundle is None:
            bundle = run_build(Job(model=None, target=fastest_target(), output=Path(temporary) / "bundle")).folder
        with open_bundle(bundle) as opened:
            report = measure(opened, source, count, Path(temporary), tries=tries)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "deadline.json", dumps(report))
    write_atomic(out / "deadline.md", render(report))
    plot(report, out / "deadline.png")
    click.echo(f"wrote deadline.json, deadline.md and deadline.png into {out}")


if __name__ == "__main__":
    main()
