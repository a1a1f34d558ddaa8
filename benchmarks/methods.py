"""Every way to compress without training, alone and together: accuracy, MACs and time of int8 builds.

    EDGEVIT_DATA=DIR python -m benchmarks.methods --compression DIR --tokens DIR -o reports/reference

EDGEVIT_DATA is that of benchmarks/tokens.py. --compression and --tokens are the --work folders of
benchmarks/compression_curve.py and benchmarks/tokens.py: Programs that lie there are used, others are made and kept.
A plan of merges is searched on the pruned model, whose share is that of the dense model's MACs in the end; gates were
trained without it. Builds are kept in --work. Times are process CPU times of one thread, all builds of a model in
turns, over the dense int8 build's; peers.* says what that takes beside other tools. All is measured in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import backends, compression_curve, tokens
from benchmarks.kept import read_program, read_table
from benchmarks.methods_report import NAMES, Mix, Row, plot, table
from benchmarks.timing import Times, interleave, ratio, take_turn
from edgevit.backends import Runner, backend
from edgevit.compress.tokens.drift import drifts
from edgevit.compress.tokens.repair import repair
from edgevit.compress.tokens.search import search
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.measure.environment import environment, snapshot
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program, save_program
from edgevit.program.spec import shift_name
from edgevit.schema.target import load_target
from edgevit.util.strict_json import dumps, write_atomic

FOLDER = click.Path(path_type=Path, file_okay=False)
CALIBRATION, RANGES, TIMED_IMAGES = 300, 64, 20
MIXES = (
    Mix(),
    *(Mix(merge=share, follows=follows) for follows in (False, True) for share in (0.8, 0.7, 0.6, 0.5)),
    *(Mix(prune=prune) for prune in (0.1, 0.2, 0.3)),
    *(Mix(gate=gate) for gate in (0.9, 0.8, 0.7)),
    *(Mix(prune=0.1, merge=share) for share in (0.7, 0.6, 0.5)),
    Mix(prune=0.2, merge=0.5),
    Mix(prune=0.1, gate=0.9),
    *(Mix(gate=0.9, merge=share) for share in (0.8, 0.7)),
    Mix(prune=0.1, gate=0.9, merge=0.7),
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A dense model, its images, what the other two benchmarks made of it, and where builds are kept."""

    name: str
    calibration: ImageSet
    held: ImageSet
    compression: compression_curve.Case
    made: compression_curve.Made
    tokens: tokens.Case
    work: Path

    @property
    def dense(self) -> Program:
        return self.tokens.dense


def load(name: str, data: Path, images: int, compression: Path, merges: Path, work: Path) -> Model:
    """Load a model and its images."""
    full = compression_curve.MODELS[name]
    dense = from_timm(full, weights=data / f"{full}.safetensors")
    known = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION)
    held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, limit=images, labelled=True)
    assert held.labels is not None
    made = compression_curve.Made(compression)
    expected = made.reference(f"{name}-{held.digest[:12]}", dense, held.images)
    return Model(
        name=name,
        calibration=load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=RANGES),
        held=held,
        compression=compression_curve.Case(
            name=name,
            dense=dense,
            calibration=known.images,
            images=held.images,
            labels=held.labels,
            reference=expected,
        ),
        made=made,
        tokens=tokens.Case(name=name, dense=dense, calibration=known.images, held=held, expected=expected, work=merges),
        work=work / name,
    )


def program(model: Model, mix: Mix) -> Program | None:
    """Return the Program of a mix; None where the search found no variant that follows the image."""
    if mix.gate < 1.0:
        gated = model.made.gated(model.compression, mix.prune, mix.gate)
        alone = Mix(prune=mix.prune, merge=mix.merge)
        return gated if mix.merge is None else merging_like(gated, _merged(model, alone))
    if mix.merge is not None:
        return _merged(model, mix) if mix.prune else _of_tokens(model, mix.merge, mix.follows)
    return model.made.pruned(model.compression, mix.prune, "repaired") if mix.prune else model.dense


def _of_tokens(model: Model, share: float, follows: bool) -> Program | None:
    told = tokens.searched(model.tokens, share)
    return tokens.made(model.tokens, share, follows) if ("follows" if follows else "fixed") in told else None


def _merged(model: Model, mix: Mix) -> Program:
    """Return a pruned model that merges tokens down to a share of the dense one's MACs, fitted again where it pays."""
    assert mix.merge is not None
    if not mix.prune:
        found = _of_tokens(model, mix.merge, False)
        assert found is not None
        return found
    folder = model.work / f"program-{mix.slug}"
    if not folder.exists():
        images, budget = model.compression.calibration, int(mix.merge * total_macs(model.dense.spec))
        pruned = model.made.pruned(model.compression, mix.prune, "repaired")
        plan = search(pruned, images, budget, reference=model.dense, say=click.echo)
        repaired = repair(pruned.with_weights(plan.shifts, plan.spec), model.dense, images)
        click.echo(f"{model.name}, {mix.name}: {repaired.summary}")
        save_program(repaired.program, folder, force=True)
    return read_program(folder)


def merging_like(gated: Program, merged: Program) -> Program:
    """Return a gated Program that merges tokens where another one does, with its rows that keep tokens apart."""
    names = [shift_name(point) for point in merged.spec.merges if point.shift]
    spec = replace(gated.spec, merges=merged.spec.merges)
    return gated.with_weights({name: merged.weights[name] for name in names}, spec)


def built(model: Model, mix: Mix, made: Program, target: str) -> Runner:
    """Return the int8 build of a Program for a target, which is kept."""
    folder = model.work / mix.slug
    folder.mkdir(parents=True, exist_ok=True)
    case = backends.Case(
        key=mix.slug, program=made, calibration=model.calibration, evaluation=model.held, folder=folder
    )
    return backends.build(case, load_target(target)).load()


def measured(model: Model, mix: Mix, made: Program, runner: Runner, target: str) -> Row:
    """Return accuracy and MACs on all held images; times follow."""
    follows = made.spec.adaptive
    runs = [runner.answer(image[None]) if follows else runner.run(image[None]) for image in model.held.images]
    logits = np.concatenate([run[0] for run in runs])
    macs = np.array([run_macs(made.spec, run[1], *run[2:]) for run in runs]) / total_macs(model.dense.spec)
    said, expected = logits.argmax(1), model.compression.reference
    return Row(
        model=model.name,
        target=target,
        **asdict(mix),
        macs=float(macs.mean()),
        macs_low=float(np.quantile(macs, 0.1)),
        macs_high=float(np.quantile(macs, 0.9)),
        top1=float((said == model.held.labels).mean()),
        agreement=float((said == expected.argmax(1).numpy()).mean()),
        drift=float(drifts(model.dense.spec, expected, torch.from_numpy(logits)).mean()),
        images=len(said),
    )


def timed(rows: list[Row], runners: dict[str, Runner], images: np.ndarray, rounds: int) -> list[Row]:
    """Time all builds of a model in turns; return their rows with times."""

    def once(runner: Runner) -> Callable[[int], object]:
        return lambda index: runner.run(images[index][None])

    times: dict[str, Times] = interleave({key: once(r) for key, r in runners.items()}, TIMED_IMAGES, rounds)
    base = times[Mix().slug]
    found = []
    for row in rows:
        share = ratio(times[row.mix.slug], base)
        found.append(replace(row, time=share.value, time_low=share.low, time_high=share.high))
    return found


@click.command(epilog="Example: python -m benchmarks.methods --compression out/compression --tokens out/tokens")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(NAMES)), default=tuple(NAMES))
@click.option("--target", default="x86-64-avx512vnni-tvm", show_default=True)
@click.option("--images", default=1000, show_default=True, help="Labelled images to evaluate on.")
@click.option("--rounds", default=100, show_default=True)
@click.option("--compression", default="out/compression", type=FOLDER, show_default=True)
@click.option("--tokens", "merges", default="out/tokens", type=FOLDER, show_default=True)
@click.option("--work", default="out/methods", type=FOLDER, show_default=True)
@click.option("--turn", type=click.Path(path_type=Path), help="Hold this lock file while timing.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(
    models: tuple[str, ...],
    target: str,
    images: int,
    rounds: int,
    compression: Path,
    merges: Path,
    work: Path,
    turn: Path | None,
    output: Path,
) -> None:
    """Measure every mix of methods; write methods.json, .md and .png."""
    if "EDGEVIT_DATA" not in os.environ:
        raise click.ClickException("set EDGEVIT_DATA to the folder named in this file's first lines")
    rows, before = list[Row](), snapshot()
    for name in models:
        model = load(name, Path(os.environ["EDGEVIT_DATA"]), images, compression, merges, work)
        own, runners = list[Row](), dict[str, Runner]()
        for mix in MIXES:
            made = program(model, mix)
            if made is None:
                continue
            runners[mix.slug] = built(model, mix, made, target)
            own.append(measured(model, mix, made, runners[mix.slug], target))
            click.echo(f"{name}, {mix.name}: {own[-1].macs:.3f} of the MACs, top-1 {own[-1].top1:.1%}")
        with take_turn(turn):
            rows += timed(own, runners, model.held.images, rounds)
    output.mkdir(parents=True, exist_ok=True)
    asked = load_target(target)
    machine = environment(
        before,
        snapshot(),
        runtime=asked.backend,
        runtime_version=", ".join(f"{k} {v}" for k, v in backend(asked.backend).versions().items()),
        inference_precision=asked.inference_precision,
        threads=1,
    )
    write_atomic(output / "methods.json", dumps({"machine": machine, "rounds": rounds, "rows": rows}))
    write_atomic(output / "methods.md", table(rows, machine, rounds))
    peers = read_table(output / "peers-vnni.json", "measure it again with benchmarks/peers.py")
    plot(rows, peers.get("rows", []), output / "methods.png")


if __name__ == "__main__":
    main()
