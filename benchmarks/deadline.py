"""Hold a deadline by effort on a sequence of photographs, with the shipped Program as a C library.

    EDGEVIT_DATA=DIR python -m benchmarks.deadline -o reports/reference

The bundle is built for the fastest TVM target of this machine, and a small C program (deadline.c) is linked with its
library. One process runs every image densely, at the least effort and in the loop of deadline.h. The deadline lies
between the medians of the first two (or is given), and is one of CPU time of the thread, so that other programs do not
count.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from edgevit.api.build import Job, run_build
from edgevit.build.host import fastest, runtime_versions, target_health
from edgevit.build.points import GRID
from edgevit.bundle.read import open_bundle
from edgevit.images.image_set import load_images
from edgevit.measure.environment import cpu_flags, environment, snapshot
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import Environment
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from edgevit.util.strict_json import dumps, write_atomic

SOURCE = Path(__file__).with_suffix(".c")
PERCENTILE = 95
TRIED_IMAGES = 16
NEAR = 0.1  # of the way between the least work and the dense
SHARE = 0.5  # of the way from the median at the least effort to the dense one's


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
    """Everything deadline.md and deadline.png are made of; `work` says what the runs count."""

    command: str
    machine: Environment
    model: str
    target: str
    images: str
    work: str
    least: float
    most: float
    deadline_ms: float
    runs: tuple[Run, ...]

    def ms(self, way: str) -> np.ndarray:
        """Return the times of `dense`, `least` or `loop`, `[images]`."""
        return np.array([getattr(run, f"{way}_ms") for run in self.runs])

    def late(self, way: str) -> float:
        """Return the share of images that took longer than the deadline."""
        return float((self.ms(way) > self.deadline_ms).mean())

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


def sequence(program: Path, weights: Path, images: Path, limit_ms: float, least: float, most: float) -> tuple[Run, ...]:
    """Run a file of raw images in one process."""
    words = (str(program), str(weights), str(images), f"{limit_ms:.6f}", f"{least:.6f}", f"{most:.6f}")
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return tuple(parsed(line) for line in told.splitlines())


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


def deadline_between(runs: Sequence[Run]) -> float:
    """Return a deadline that the dense run misses and the least effort meets, in ms."""
    dense, least = (float(np.median([getattr(run, f"{way}_ms") for run in runs])) for way in ("dense", "least"))
    return float(f"{least + SHARE * (dense - least):.3g}")


def effective(program: Path, weights: Path, images: Path) -> tuple[float, float]:
    """Return the efforts between which work changes: near the least and near the dense, by NEAR of the way.

    Raises:
        click.ClickException: effort moves nothing.
    """
    efforts = (*(-effort for effort in reversed(GRID)), 0.0, *GRID)
    work, dense = [], 0.0
    for effort in efforts:
        runs = sequence(program, weights, images, 1e9, effort, effort)
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
        f"Deadline: {report.deadline_ms:.2f} ms an image, of the thread's CPU time, so that other programs on the "
        "machine do not count. Every image is run densely, at the least effort and with the loop of `deadline.h` "
        f"(effort from {report.least:g} to {report.most:g}, where it changes the work; begun at the latter), in turn. "
        f"Asked: dense misses the deadline, the loop holds it at the {PERCENTILE}th percentile.",
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


def measure(bundle: Bundle, source: Path, count: int, limit_ms: float | None, work: Path) -> Report:
    """Run images of `source` through a bundle's library; with no limit given one is chosen from the first of them."""
    manifest = bundle.manifest
    program, weights = compiled(bundle.folder, work), bundle.folder / "model.weights"
    images = load_images(source, manifest.input.preprocessing, limit=count).images
    every, some = work / "images.raw", work / "some.raw"
    every.write_bytes(images.tobytes())
    some.write_bytes(images[:TRIED_IMAGES].tobytes())
    least, most = effective(program, weights, some)
    command = f"python -m benchmarks.deadline --images {count}"
    if limit_ms is None:
        limit_ms = deadline_between(sequence(program, weights, some, 1e9, least, most))
    else:
        command += f" --deadline {limit_ms:g}"
    before = snapshot()
    runs = sequence(program, weights, every, limit_ms, least, most)
    counts_tokens = any(output.name == "tokens" for output in manifest.outputs)
    return Report(
        command=command,
        machine=environment(
            before,
            snapshot(),
            runtime="tvm",
            runtime_version=f"tvm {manifest.tools['tvm']}",
            inference_precision=manifest.target.inference_precision,
            threads=1,
        ),
        model=manifest.name,
        target=manifest.target.name,
        images=source.name,
        work="tokens left" if counts_tokens else "branches run",
        least=least,
        most=most,
        deadline_ms=limit_ms,
        runs=runs,
    )


@click.command(epilog="Example: python -m benchmarks.deadline -o reports/reference")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="A TVM bundle (default: build one).")
@click.option("--images", "count", default=1000, show_default=True, type=click.IntRange(2), help="At most so many.")
@click.option("--deadline", "limit_ms", type=float, help="In ms (default: half of the way to dense).")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(bundle: Path | None, count: int, limit_ms: float | None, out: Path) -> None:
    """Write deadline.json, deadline.md and deadline.png."""
    data = os.environ.get("EDGEVIT_DATA")
    source = Path(data) / "imagenet-val-1000.tar" if data else shipped("calibration") / "shipped.toml"
    with tempfile.TemporaryDirectory() as temporary:
        if bundle is None:
            bundle = run_build(Job(model=None, target=fastest_target(), output=Path(temporary) / "bundle")).folder
        with open_bundle(bundle) as opened:
            report = measure(opened, source, count, limit_ms, Path(temporary))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "deadline.json", dumps(report))
    write_atomic(out / "deadline.md", render(report))
    plot(report, out / "deadline.png")
    click.echo(f"wrote deadline.json, deadline.md and deadline.png into {out}")


if __name__ == "__main__":
    main()
