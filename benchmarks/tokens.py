"""What merging tokens loses and saves, without training: accuracy against MACs in float and int8, and time at 0.7.

Fixed numbers of pairs stand beside numbers that follow the image at the same mean cost. Which of both is better is
judged by their drift from the dense model, paired over images that had no part in the search: 1000 images tell top-1 to
half a point between two plans, and drift far finer. What the search would choose is said, with its own drift and the
CPU time of one thread that it took.

    EDGEVIT_DATA=DIR python benchmarks/tokens.py --model deit_tiny --model vit_tiny -o reports/reference

EDGEVIT_DATA holds `<timm name>.safetensors` of both models, imagenet-sample-1000.tar (calibration, labels unused) and
imagenet-val-1000.tar (evaluation). Programs are kept in --work and rows in tokens.json, each as soon as it is there; a
second run goes on from them. Times are process CPU times of one thread, dense and merged int8 in turns; --no-timing
leaves them out, and int8 is then of the first target only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.compression_curve import MODELS
from benchmarks.kept import REMAKE, read_array, read_program, read_rows, read_table
from benchmarks.timing import interleave, ratio
from edgevit import pipeline
from edgevit.backends import Runner, onnx_backend
from edgevit.compress.tokens.drift import drifts
from edgevit.compress.tokens.repair import repair
from edgevit.compress.tokens.search import follow, search
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import ImageSet, load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program, save_program
from edgevit.program.tokens import write_plan
from edgevit.schema.target import load_target
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import Say
from edgevit.util.strict_json import dumps, write_atomic

SHARES = (0.7, 0.6, 0.8, 0.5)
TIMED = 0.7
TARGETS = ("x86-64-onnxruntime", "x86-64-openvino")
PRECISE = re.compile(r"@(-?[0-9.e-]+)")
CALIBRATION, ROUNDS, TIMED_IMAGES = 300, 60, 20
ANEW = "delete tokens.json, and its rows are measured anew"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program as one runtime computes it (`torch`: float). `time` is CPU time over the dense int8 build's.

    `macs` is the mean of the images; `macs_low` and `macs_high` are its 10th and 90th percentile over them. `drift` is
    on the calibration images, `unseen` on the evaluated ones, and `gain` how much less that is than the fixed plan's,
    `gain_error` its standard error, paired over the images. `chosen` is whether the search prefers it to the other of
    its share, `seconds` the CPU time of the search for both.
    """

    model: str
    runtime: str
    share: float
    macs: float
    plan: str
    top1: float
    agreement: float
    images: int
    follows: bool = False
    macs_low: float | None = None
    macs_high: float | None = None
    drift: float | None = None
    unseen: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    chosen: bool | None = None
    seconds: float | None = None
    time: float | None = None
    time_low: float | None = None
    time_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all rows of a model share: the dense Program, its logits in float, and where things are kept."""

    name: str
    dense: Program
    calibration: np.ndarray
    held: ImageSet
    expected: torch.Tensor
    work: Path

    def drifts(self, logits: np.ndarray) -> np.ndarray:
        """Return how far logits `[n, classes]` of the evaluated images are from the dense model's, `[n]`."""
        return drifts(self.dense.spec, self.expected, torch.from_numpy(logits)).numpy()

    def folder(self, share: float, follows: bool) -> Path:
        return self.work / f"{self.name}-{share:g}{'-image' if follows else ''}"


@torch.no_grad()
def answers(program: Program, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits `[n, classes]` in float, and MACs of every image."""
    model = Vit(program).eval()
    found = [model.answer(batch) for batch in batches(program.spec, images, 50)]
    macs = [run_macs(program.spec, g, t) for a in found for g, t in zip(a.gates.numpy(), a.tokens.numpy(), strict=True)]
    return np.concatenate([a.logits.numpy() for a in found]), np.array(macs)


def fixed(case: Case, share: float, say: Say) -> tuple[Program, float | None]:
    """Search for the fixed plan of a share, once; return its Program, and the CPU time if it was searched now."""
    folder, dense = case.folder(share, False), case.dense
    if folder.exists():
        return read_program(folder), None
    begin = time.process_time()
    plan = search(dense, case.calibration, int(share * total_macs(dense.spec)), reference=dense, say=say)
    repaired = repair(dense.with_weights(plan.shifts, plan.spec), dense, case.calibration)
    say(repaired.summary)
    seconds = time.process_time() - begin
    save_program(repaired.program, folder, force=True)
    return repaired.program, seconds


def searched(case: Case, share: float) -> dict[str, dict[str, float | bool | None]]:
    """Search for the fixed plan of a share and for its variant that follows the image, once; keep both Programs."""
    file = case.work / f"{case.name}-{share:g}.json"
    if file.exists():
        return read_table(file, REMAKE, dict[str, dict[str, float | bool | None]])
    told = dict[str, dict[str, float | bool | None]]()

    def say(line: str) -> None:
        click.echo(f"{case.name} {share}: {line}", err=True)

    program, seconds = fixed(case, share, say)
    begin = time.process_time()
    found = follow(program, case.calibration, int(share * total_macs(case.dense.spec)), reference=case.dense, say=say)
    seconds = None if seconds is None else seconds + time.process_time() - begin
    for kind, each in (("fixed", found.fixed), ("follows", found.follows)):
        if each is not None:
            plan = program.with_weights(each.shifts, each.spec)
            save_program(plan, case.folder(share, kind == "follows"), force=True)
            told[kind] = {"drift": each.drift, "chosen": each is found.chosen, "seconds": seconds}
    write_atomic(file, dumps(told))
    return told


def made(case: Case, share: float, follows: bool) -> Program:
    """The Program with merged tokens, the dense one for 1."""
    return case.dense if share == 1.0 else read_program(case.folder(share, follows))


def int8(program: Program, target_name: str, calibration: np.ndarray, folder: Path) -> Runner:
    """The Program as a target computes it in int8, built into `folder` where it is not there yet."""
    target, runtime = load_target(target_name), onnx_backend(load_target(target_name).backend)
    if not folder.exists():
        lowered, plan = pipeline.quantize(program, target, calibration)
        folder.mkdir(parents=True)
        runtime.compile(assemble(lowered, plan), folder)
    return runtime.load(folder, threads=1, precision=target.inference_precision, weight_bits=target.weight_bits)


def built(case: Case, target: str, share: float, follows: bool) -> Runner:
    folder = case.folder(share, follows)
    return int8(made(case, share, follows), target, case.calibration, folder.with_name(f"{folder.name}-{target}"))


def row(case: Case, runtime: str, share: float, program: Program, logits: np.ndarray, macs: np.ndarray) -> Row:
    """Return the row of logits `[n, classes]` and MACs `[n]`; a fixed plan's drifts are kept to compare with."""
    assert case.held.labels is not None
    spent, said, drifted = macs / total_macs(case.dense.spec), logits.argmax(1), case.drifts(logits)
    follows = program.spec.adaptive
    kept = case.work / f"{case.name}-{share:g}-{runtime}.npy"
    gain = read_array(kept, drifted.shape, ANEW) - drifted if follows else None
    if not follows:
        np.save(kept, drifted)
    return Row(
        model=case.name,
        runtime=runtime,
        share=share,
        macs=float(spent.mean()),
        plan=write_plan(program.spec),
        top1=float((said == case.held.labels).mean()),
        agreement=float((said == case.expected.argmax(1).numpy()).mean()),
        images=len(said),
        follows=follows,
        macs_low=float(np.quantile(spent, 0.1)) if follows else None,
        macs_high=float(np.quantile(spent, 0.9)) if follows else None,
        unseen=float(drifted.mean()),
        gain=None if gain is None else float(gain.mean()),
        gain_error=None if gain is None else float(gain.std() / len(gain) ** 0.5),
    )


def float_rows(case: Case, share: float) -> list[Row]:
    """Return the fixed plan and the one that follows the image, in float."""
    found = []
    for kind, told in searched(case, share).items():
        program = made(case, share, kind == "follows")
        plain = row(case, "torch", share, program, *answers(program, case.held.images))
        seconds = told["seconds"]
        found.append(
            replace(
                plain,
                drift=told["drift"],
                chosen=bool(told["chosen"]),
                seconds=None if seconds is None else round(seconds, 1),
            )
        )
    return found


def int8_row(case: Case, target: str, share: float, follows: bool) -> Row:
    """Return accuracy of an int8 build; its MACs are those of the tokens that it has left itself."""
    program, runner = made(case, share, follows), built(case, target, share, follows)
    runs = [
        runner.answer(image[None]) if program.spec.adaptive else runner.run(image[None]) for image in case.held.images
    ]
    macs = np.array([run_macs(program.spec, run[1], *run[2:]) for run in runs])
    return row(case, target, share, program, np.concatenate([run[0] for run in runs]), macs)


def timed(case: Case, target: str, rows: list[Row]) -> list[Row]:
    """Time int8 of the dense and of the merged Program of `TIMED` in turns: their rows, with times."""
    loaded = {share: built(case, target, share, False) for share in (1.0, TIMED)}

    def once(runner: Runner) -> Callable[[int], object]:
        return lambda index: runner.run(case.held.images[index][None])

    times = interleave({str(share): once(runner) for share, runner in loaded.items()}, TIMED_IMAGES, ROUNDS)
    found = {1.0: (1.0, 1.0, 1.0), TIMED: astuple(ratio(times[str(TIMED)], times["1.0"]))}
    of = {r.share: r for r in rows if (r.model, r.runtime, r.follows) == (case.name, target, False)}
    return [replace(of[s], time=v, time_low=low, time_high=high) for s, (v, low, high) in found.items()]


def rounded(threshold: re.Match[str]) -> str:
    return f"@{float(threshold[1]):.3f}"


def table(rows: list[Row]) -> str:
    lines = [
        "# Merging tokens: accuracy against MACs and time, without training",
        "",
        "`python benchmarks/tokens.py --model deit_tiny --model vit_tiny`",
        "",
        f"Top-1 on the first {max(r.images for r in rows)} images of ImageNet's validation set (standard error about "
        f"1.4 points, of a difference between two plans about 0.5); {CALIBRATION} unlabelled images of another set for "
        "the search and for int8 ranges. Agreement: the same class as the dense float model. Time: CPU time of one "
        "thread over the dense int8 build's on the same runtime, median of rounds in turns, with its 95 % interval. "
        "A plan 4:60,8:60 merges 60 pairs after the attention of blocks 4 and 8, counted from 1; 4:0-98@0.8 those "
        "whose likeness is above 0.8, up to 98, so that the number follows the image: MACs are then the mean over the "
        "images and, in brackets, the 10th and 90th percentile.",
        "",
        "Drift: mean KL divergence from the dense model, of the calibration images (on which output linears were "
        "fitted again where that paid: deit_tiny at 0.5, see merge-repair.md) and of the evaluated ones, which no "
        "search saw. Gain: how much less the plan that follows the image drifts on them than the fixed one, with its "
        "standard error, paired over images. This is what plans are judged by: top-1 of 1000 images cannot tell them "
        "apart. The search, which sees the calibration images alone, chooses the plan in bold.",
        "",
        "![Top-1 against MACs](tokens.png)",
    ]
    for model in dict.fromkeys(r.model for r in rows):
        lines += ["", f"## {model}", "", f"| {' | '.join(HEADS)} |", f"| --- |{' ---: |' * (len(HEADS) - 1)}"]
        own = [r for r in rows if r.model == model]
        own.sort(key=lambda r: (r.runtime != "torch", r.runtime, -r.share, r.follows))
        lines += [f"| {' | '.join(cells(r))} |" for r in own]
        spent = {r.share: r.seconds for r in own if r.seconds is not None}
        if spent:
            said = ", ".join(f"{seconds:.0f} s for {share:g}" for share, seconds in spent.items())
            lines += ["", f"CPU time of the search, one thread: {said}."]
    return "\n".join(lines) + "\n"


HEADS = ("computed by", "MACs", "plan", "drift", "of unseen images", "gain", "top-1", "agreement", "time")


def cells(r: Row) -> list[str]:
    """Return the cells of a row under `HEADS`."""

    def four(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    spread = "" if r.macs_low is None else f" ({r.macs_low:.3f} to {r.macs_high:.3f})"
    return [
        "float" if r.runtime == "torch" else f"int8, {r.runtime}",
        f"{r.macs:.3f}{spread}",
        PRECISE.sub(rounded, r.plan) or "dense",
        f"**{four(r.drift)}**" if r.chosen else four(r.drift),
        four(r.unseen),
        "" if r.gain is None else f"{r.gain:.4f} ± {r.gain_error:.4f}",
        f"{r.top1:.1%}",
        f"{r.agreement:.1%}",
        "" if r.time is None else f"{r.time:.3f} ({r.time_low:.3f} to {r.time_high:.3f})",
    ]


def plot(rows: list[Row], others: Path, path: Path) -> None:
    """Top-1 against MACs, a panel per model; beside merging, what pruning and gates lose (compression.json)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(r.model for r in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 4.5), sharey=True, squeeze=False)
    beside = read_table(others, "measure it again with benchmarks/compression_curve.py").get("rows", [])
    for axis, model in zip(axes[0], models, strict=True):
        for runtime, style in {r.runtime: "-" if r.runtime == "torch" else "--" for r in rows}.items():
            own = [r for r in rows if (r.model, r.runtime) == (model, runtime)]
            for follows, colour in ((False, "tab:blue"), (True, "tab:orange")):
                points = [r for r in own if r.follows == follows or r.share == 1.0]
                points.sort(key=lambda r: -r.macs)
                name = f"{'per image' if follows else 'fixed'}, {'float' if runtime == 'torch' else f'int8, {runtime}'}"
                values = [100 * r.macs for r in points], [100 * r.top1 for r in points]
                axis.plot(*values, style, marker="o", markersize=4, color=colour, label=name)
        for method, colour in (("prune, repaired", "tab:gray"), ("gates", "tab:olive")):
            found = [r for r in beside if r["model"] == model and r["method"] in ("dense", method)]
            found.sort(key=lambda r: -r["macs"])
            values = [100 * r["macs"] for r in found], [100 * r["top1"] for r in found]
            axis.plot(*values, ":", marker="s", markersize=3, color=colour, label=f"{method}, float")
        axis.set_title(model)
        axis.set_xlabel("MACs, % of dense")
        axis.set_ylim(50, 80)
        axis.grid(alpha=0.3)
        axis.invert_xaxis()
    axes[0][0].set_ylabel("top-1, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="EDGEVIT_DATA", required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/tokens"), show_default=True)
@click.option("--share", "shares", multiple=True, type=float, default=SHARES, show_default=True, help="Of the MACs.")
@click.option("--timing/--no-timing", default=True, help="Time int8 too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("reports/reference"))
def main(
    models: tuple[str, ...], data: Path, work: Path, shares: tuple[float, ...], timing: bool, output: Path
) -> None:
    """Measure, write tokens.json, tokens.md and tokens.png."""
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    file = output / "tokens.json"
    rows = read_rows(file, Row, ANEW)

    def keep(*found: Row) -> None:
        key = {(r.model, r.runtime, r.share, r.follows) for r in found}
        rows[:] = [r for r in rows if (r.model, r.runtime, r.share, r.follows) not in key] + list(found)
        write_atomic(file, dumps({"rows": [asdict(r) for r in rows]}))
        write_atomic(output / "tokens.md", table(rows))

    def there(*key: object) -> bool:
        return any((r.model, r.runtime, r.share, r.follows) == key for r in rows)

    cases = [read_case(name, data, work) for name in models]
    for case in cases:
        if not there(case.name, "torch", 1.0, False):
            macs = np.full(len(case.expected), total_macs(case.dense.spec))
            keep(row(case, "torch", 1.0, case.dense, case.expected.numpy(), macs))
    targets = TARGETS if timing else TARGETS[:1]
    for share in (1.0, *shares):
        for case in cases:
            if not there(case.name, "torch", share, False):
                keep(*float_rows(case, share))
            for target in targets:
                for follows in (False, True):
                    if there(case.name, "torch", share, follows) and not there(case.name, target, share, follows):
                        keep(int8_row(case, target, share, follows))
    for case in cases if timing else ():
        for target in targets:
            keep(*timed(case, target, rows))
    write_atomic(output / "tokens.md", table(rows))  # where all rows were there already
    plot(rows, output / "compression.json", output / "tokens.png")


def read_case(name: str, data: Path, work: Path) -> Case:
    timm_name = MODELS[name]
    dense = from_timm(timm_name, weights=data / f"{timm_name}.safetensors")
    held = load_images(data / "imagenet-val-1000.tar", dense.spec.image, labelled=True)
    return Case(
        name=name,
        dense=dense,
        calibration=load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION).images,
        held=held,
        expected=torch.from_numpy(answers(dense, held.images)[0]),
        work=work,
    )


if __name__ == "__main__":
    main()
