"""edgevit's int8 builds beside those of the peers' own tools: time and accuracy on the same images, in one run.

    pip install -e '.[all,bench]'
    pip install -e '.[bench-litert]'        (for LiteRT; ExecuTorch, ncnn and MNN: bench-peers; shown where installed)
    EDGEVIT_DATA=DIR python benchmarks/peers.py --work out/peers -o reports/reference

EDGEVIT_DATA holds `<timm name>.safetensors` of both models, imagenet-sample-1000.tar (calibration, labels unused) and
imagenet-val-1000.tar (evaluation). The peers' models and all predictions are kept in --work and used again; edgevit's
builds are made anew each time. The .json is written after every candidate; the .md is made of it. Both are called
peers, on a CPU with VNNI peers-vnni, on one that halves its vectors peers-128bit: figures of one class of CPUs say
nothing of another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import click
import numpy as np

from benchmarks import peer_builds
from benchmarks.cpu_class import suffix
from benchmarks.peer_builds import Logits
from benchmarks.peer_candidates import BY_HAND, MODELS, Candidate, Case, peer_candidates
from benchmarks.peer_optional import OPTIONAL
from benchmarks.peer_report import FLOAT, Accuracy, Report, Row, table
from benchmarks.timing import Times, interleave, ratio, take_turn
from edgevit.backends import Source, backend, onnx_backend
from edgevit.compress.budgets import Budgets
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.measure.environment import cpu_flags, environment, snapshot
from edgevit.onnx_form.assemble import assemble
from edgevit.pipeline import compress, quantize
from edgevit.program.program import Program, load_program, save_program
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import Target, list_targets, load_target, missing_flags
from edgevit.util.progress import track
from edgevit.util.strict_json import dumps, write_atomic
from edgevit.verify.accuracy import fraction, paired_drop

RUNTIMES = {"ORT": "onnxruntime", "OV": "openvino"}
# What of a target decides how a model is quantized.
QUANTIZATION = (
    "int8",
    "weight_bits",
    "int16_products",
    "activations",
    "range_method",
    "percentile",
    "smoothing",
    "attention",
)
MERGED = ("x86-64-onnxruntime", "x86-64-openvino", "x86-64-avx512vnni-tvm", "x86-64-v3-tvm")
TVM = "TVM"  # no peer builds with it: beside those of every runtime
Made = dict[tuple[object, ...], tuple[Program, QuantPlan | None]]
Predicted = tuple[np.ndarray, np.ndarray | None]


def own_candidates(case: Case, only: tuple[str, ...] = (), shares: tuple[float, ...] = ()) -> list[Candidate]:
    """Build edgevit's models as `edgevit build` would: float per runtime, int8 per x86 target that ships, all dense.

    With `only` there are just these targets, and no float ones. Then, for every share, what `--macs` makes of the model
    for the fastest target of each runtime.
    """
    found = []
    made: Made = {}
    for short, name in RUNTIMES.items() if not only else ():
        folder = _compiled(case.folder / f"edgevit-float-{short}", name, case.program, None)
        found.append(_own(f"edgevit float, {short}", short, folder))
    if not only:
        found += _float_machine_code(case)
    for name in only or list_targets():
        found += _int8(case, load_target(name), case.program, made)
    for share in shares:
        programs = {fixed: merged(case, share, fixed=fixed) for fixed in (False, True)}
        for target in map(load_target, MERGED):
            fixed = bool(backend(target.backend).FOLLOWING_COSTS)
            found += _int8(case, target, programs[fixed], made, share)
    return found


def merged(case: Case, share: float, *, fixed: bool) -> Program:
    """Return what `edgevit build --macs` makes of the model, kept in the work folder: the search takes minutes.

    Numbers of tokens are `fixed` for a runtime that saves no time where they follow the image.
    """
    folder = case.folder / f"merged-{share:g}{'-fixed' if fixed else ''}"
    if not folder.exists():
        budgets = Budgets(merged=share, per_image=False if fixed else None)
        save_program(compress(case.program, case.calibration, budgets, say=partial(click.echo, err=True)), folder)
    return load_program(folder)


def _float_machine_code(case: Case) -> list[Candidate]:
    """TVM's float build of the target that this CPU is made for; none where no target of it runs here."""
    target = chosen_target("tvm")
    if missing_flags(target, cpu_flags()):
        return []
    plain = replace(target, int8=False, attention="float32")
    return [_machine_code("edgevit float, TVM", case.folder / "edgevit-float-TVM", plain, case.program, None, None)]


def chosen_target(runtime: str) -> Target:
    """The x86 target of a runtime that this CPU is made for: all its flags are there, and no other asks for more."""
    every = [load_target(name) for name in list_targets()]
    own = [target for target in every if target.arch == "x86_64" and target.backend == runtime]
    own.sort(key=lambda target: -len(target.requires_flags))
    return next((target for target in own if not missing_flags(target, cpu_flags())), own[-1])


def _int8(case: Case, target: Target, program: Program, made: Made, share: float | None = None) -> list[Candidate]:
    """The build of one target, if this CPU is of its kind."""
    if target.arch != "x86_64":
        return []
    told = f"edgevit {target.name}" + (f", --macs {share:g}" if share is not None else "")
    folder = case.folder / told.replace(" ", "-").replace(",", "")
    lowered = partial(_quantized, case, target, program, made)
    if target.backend not in RUNTIMES.values():
        return [] if missing_flags(target, cpu_flags()) else [_machine_code(told, folder, target, *lowered(), share)]
    short = next(s for s, name in RUNTIMES.items() if name == target.backend)
    quantized, plan = lowered()
    _compiled(folder, target.backend, quantized, plan)
    return [replace(_own(told, short, folder, target), plan=plan, share=share)]


def _quantized(case: Case, target: Target, program: Program, made: Made) -> tuple[Program, QuantPlan | None]:
    """Quantize as `edgevit build` does; targets that ask the same of it share one, which takes a minute."""
    asked = (id(program), *(getattr(target, field) for field in QUANTIZATION))
    if asked not in made:
        made[asked] = quantize(program, target, case.calibration)
    return made[asked]


def _compiled(folder: Path, runtime: str, program: Program, plan: QuantPlan | None) -> Path:
    folder.mkdir(exist_ok=True)
    onnx_backend(runtime).compile(
        assemble(program, plan, gating="open"), folder, formats=tuple(onnx_backend(runtime).FILES)[:1]
    )
    return folder


def _machine_code(
    told: str, folder: Path, target: Target, program: Program, plan: QuantPlan | None, share: float | None
) -> Candidate:
    """A build by TVM, which only a CPU with all that the target asks for runs."""
    folder.mkdir(exist_ok=True)
    runtime = backend(target.backend)
    source = Source(program=program, plan=plan, model=assemble(program, plan, gating="open"), target=target)
    runtime.build(source, folder)

    def load(threads: int) -> Logits:
        runner = runtime.load(folder, threads=min(threads, target.threads))
        return lambda image: runner.run(image)[0]

    return Candidate(
        name=told,
        runtime=TVM,
        own=True,
        int8=target.int8,
        files=(folder / "model.so", folder / "model.weights"),
        load=load,
        arithmetic=f"{target.name}{'' if target.int8 else ' float'}",
        plan=plan,
        share=share,
    )


def _own(label: str, short: str, folder: Path, target: Target | None = None) -> Candidate:
    runtime = onnx_backend(RUNTIMES[short])
    names = ("model.onnx", "model.onnx.data") if short == "ORT" else ("model.xml", "model.bin")
    precision, bits = (target.inference_precision, target.weight_bits) if target else ("f32", 8)

    def load(threads: int) -> Logits:
        runner = runtime.load(folder, threads=threads, precision=precision, weight_bits=bits)
        return lambda image: runner.run(image)[0]

    return Candidate(
        name=label,
        runtime=short,
        own=True,
        int8=target is not None and target.int8,
        files=tuple(folder / name for name in names),
        load=load,
        arithmetic=f"{short} {precision}, {bits} bits",
    )


def time_candidates(case: Case, candidates: list[Candidate], runs: int, turn: Path | None) -> dict[str, Times]:
    """CPU times of all candidates, one thread, on the first `runs` evaluation images."""
    pixels = case.evaluation.images[:runs]
    floats = peer_builds.normalise(pixels, case.program.spec.image)
    with take_turn(turn):
        # Loaded within the turn: what is loaded shares memory and caches with nobody else's runs.
        steps = {c.name: _step(c.load(1), pixels if c.own else floats) for c in candidates}
        return interleave(steps, len(pixels), runs)


def _step(run: Logits, images: np.ndarray) -> Callable[[int], object]:
    return lambda index: run(images[index : index + 1])


def predict(case: Case, candidate: Candidate, threads: int, *, exact: bool = False) -> np.ndarray:
    """Class of every evaluation image, kept beside the model under a key of everything that decides it."""
    load = candidate.exact if exact and candidate.exact else candidate.load
    arithmetic = "exact" if exact else candidate.arithmetic
    key = hashlib.sha256(f"{case.evaluation.digest} {arithmetic} {backend_versions()}".encode())
    for file in candidate.files:
        key.update(file.read_bytes())
    path = case.folder / f"predicted-{key.hexdigest()[:16]}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    run, images = load(threads), case.evaluation.images
    classes = np.zeros(len(images), np.int64)
    for index in track(range(len(images)), f"Accuracy of {candidate.name}"):
        image = images[index : index + 1]
        classes[index] = run(image if candidate.own else peer_builds.normalise(image, case.program.spec.image)).argmax()
    np.save(path, classes)
    return classes


def backend_versions() -> str:
    return ", ".join(f"{k} {v}" for name in (*RUNTIMES.values(), "tvm") for k, v in backend(name).versions().items())


def versions_shown() -> str:
    """Return the versions of all runtimes that stand in the report."""
    return ", ".join([backend_versions(), *(peer.versions() for peer in OPTIONAL if peer.installed())])


def evaluate(case: Case, candidates: list[Candidate], threads: int) -> Iterator[dict[str, Predicted]]:
    """Classes that candidates predict, and those with exact int8: after each candidate what is known so far.

    The float model first, which the others are compared with; then edgevit's.
    """
    known: dict[str, Predicted] = {}
    for c in sorted(candidates, key=lambda c: (c.name != FLOAT, not c.own)):
        exact = predict(case, c, threads, exact=True) if c.exact is not None else None
        known[c.name] = predict(case, c, threads), exact
        yield known


def measure(
    case: Case, candidates: list[Candidate], times: dict[str, Times], predicted: dict[str, Predicted]
) -> tuple[Row, ...]:
    """One row per candidate; its accuracy if it was evaluated."""
    rows = []
    peers = [c for c in candidates if c.int8 and not c.own and c.name != BY_HAND]
    fastest = {
        short: min((c.name for c in peers if short in (c.runtime, TVM)), key=_median(times))
        for short in (*RUNTIMES, TVM)
    }
    for c in candidates:
        compared = c.int8 and c.runtime in fastest
        reference = predicted[FLOAT][0] if predicted else None
        accuracy, exact = (_accuracy(case, got, reference) for got in predicted.get(c.name, (None, None)))
        rows.append(
            Row(
                model=case.key,
                name=c.name,
                runtime=c.runtime,
                own=c.own,
                int8=c.int8,
                bytes=sum(file.stat().st_size for file in c.files),
                cpu_median_ms=times[c.name].median_ms,
                wall_median_ms=float(np.median(times[c.name].wall_ms)),
                to_float=ratio(times[c.name], times[FLOAT]),
                to_fastest_peer=ratio(times[c.name], times[fastest[c.runtime]]) if compared else None,
                fastest_peer=fastest[c.runtime] if compared else None,
                accuracy=accuracy,
                exact=exact,
                float_linears=tuple(p.name for p in c.plan.linears if not p.int8) if c.plan else (),
                outlier_columns=sum(len(p.outliers) for p in c.plan.linears) if c.plan else 0,
                share=c.share,
                to_hand_built=ratio(times[c.name], times[BY_HAND]) if c.plan and c.runtime == "ORT" else None,
            )
        )
    return tuple(rows)


def _accuracy(case: Case, got: np.ndarray | None, reference: np.ndarray | None) -> Accuracy | None:
    labels = case.evaluation.labels
    if got is None or reference is None or labels is None:
        return None
    return Accuracy(
        top1=fraction(got == labels),
        drop=paired_drop(reference == labels, got == labels),
        agreement=fraction(got == reference),
    )


def _median(times: dict[str, Times]) -> Callable[[str], float]:
    return lambda name: times[name].median_ms


@click.command(epilog="Example: python benchmarks/peers.py --work out/peers -o reports/reference")
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=tuple(MODELS))
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Built models, kept.")
@click.option("--target", "only", multiple=True, help="Only these of edgevit's builds; the report's name says so.")
@click.option("--macs", "shares", multiple=True, type=float, help="Builds that merge tokens to this share too.")
@click.option("--runs", default=100, show_default=True, type=click.IntRange(1), help="Timed rounds.")
@click.option(
    "--images", default=1000, show_default=True, type=click.IntRange(1), help="Labelled images to evaluate on."
)
@click.option("--calibration", default=300, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--threads", default=2, show_default=True, help="Threads of the accuracy pass; 0 leaves it out.")
@click.option("--turn", type=click.Path(path_type=Path, dir_okay=False), help="Lock file to hold while timing.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(
    models: tuple[str, ...],
    work: Path,
    only: tuple[str, ...],
    shares: tuple[float, ...],
    runs: int,
    images: int,
    calibration: int,
    threads: int,
    turn: Path | None,
    out: Path,
) -> None:
    """Build, time and evaluate edgevit's int8 models beside the peers'."""
    data = data_folder()
    before = snapshot()
    out.mkdir(parents=True, exist_ok=True)
    name = "-".join([f"peers{suffix()}", *only])
    told = f"python benchmarks/peers.py --runs {runs} --images {images} --calibration {calibration}"
    told += "".join(f" --target {target}" for target in only) + "".join(f" --macs {share:g}" for share in shares)
    done: tuple[Row, ...] = ()
    for key in models:
        case = _case(key, data, work, images, calibration)
        candidates = peer_candidates(case, data) + own_candidates(case, only, shares)
        times = time_candidates(case, candidates, runs, turn)
        machine = environment(
            before,
            snapshot(),
            runtime="both",
            runtime_version=versions_shown(),
            inference_precision="per candidate",
            threads=1,
        )
        rows: tuple[Row, ...] = ()
        # Written after every candidate: an evaluation takes minutes.
        for known in chain(({},), evaluate(case, candidates, threads) if threads else ()):
            rows = measure(case, candidates, times, known)
            report = Report(
                command=told,
                machine=machine,
                runs=runs,
                images=images,
                calibration=calibration,
                halves=suffix() == "-128bit",
                rows=done + rows,
            )
            write_atomic(out / f"{name}.json", dumps(report))
            write_atomic(out / f"{name}.md", table(report))
        done += rows
    click.echo(f"wrote {out / name}.md and .json")


def data_folder() -> Path:
    """The folder with the weights and images, from the environment."""
    if "EDGEVIT_DATA" not in os.environ:
        raise click.ClickException("set EDGEVIT_DATA to the folder with the weights and images; benchmarks/README.md")
    return Path(os.environ["EDGEVIT_DATA"])


def _case(key: str, data: Path, work: Path, images: int, calibration: int) -> Case:
    program = from_timm(MODELS[key], weights=data / f"{MODELS[key]}.safetensors")
    folder = work / f"{key}-{calibration}"
    folder.mkdir(parents=True, exist_ok=True)
    return Case(
        key=key,
        program=program,
        calibration=load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=calibration).images,
        evaluation=load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=images, labelled=True),
        folder=folder,
    )


if __name__ == "__main__":
    main()
