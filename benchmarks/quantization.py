"""Accuracy and cost of quantization recipes on real weights: writes reports/reference/quantization.{json,md}.

    python benchmarks/quantization.py --data DIR [--models vit_tiny,deit_tiny] [--evaluate 1000] [--screen 400]

DIR holds the two checkpoints, imagenet-sample-1000.tar (300 of its images calibrate) and imagenet-val-1000.tar (all of
it evaluates). Every model is dense and ungated. A recipe is planned, lowered and run on ONNX Runtime; those that a
target could use are evaluated on all images and also run on OpenVINO from the same ONNX, the others on the first 400.
On CPUs without VNNI both runtimes are told not to saturate 8-bit products where accuracy is measured; times are of
this machine's own kernels: all recipes in turn, one thread, process CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgevit  # noqa: F401  # isort: skip  # first: it keeps the runtimes from reporting their use
import numpy as np
import onnx
import onnxruntime
import openvino

from edgevit.backends import onnxruntime as ort_backend
from edgevit.backends.reference import taps
from edgevit.frontends.from_timm import from_timm
from edgevit.images.image_set import load_images
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.quantize.observe import Ranges, observe
from edgevit.quantize.plan import plan_quantization
from edgevit.quantize.ranges import Method
from edgevit.quantize.round import gptq_rounder
from edgevit.quantize.smooth import smooth
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from edgevit.tasks.sensitivity import Evaluate, drift, sensitivity
from edgevit.util.progress import track
from edgevit.util.strict_json import write_atomic

MODELS = {
    "vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny": "deit_tiny_patch16_224.fb_in1k",
}
CALIBRATION_IMAGES = 300
DRIFT_IMAGES = 32
TIMED_RUNS = 40
Rounded = Callable[[QuantPlan | None], Program]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to quantize.

    `floats` are Linears forced to float, `measured` lets drift decide on float Linears, `nearest` rounds each weight
    for itself (`edgevit.quantize.round` does not).
    """

    label: str
    method: Method = "mse"
    percentile: float = 99.999
    alpha: float = 0.0
    outliers: int = 4
    measured: bool = False
    weight_bits: int = 8
    floats: tuple[str, ...] = ()
    nearest: bool = False
    openvino: bool = False


RECIPES = (
    Recipe(label="min-max", method="minmax", outliers=0, openvino=True),
    Recipe(label="percentile 99.99", method="percentile", percentile=99.99, outliers=0),
    Recipe(label="percentile 99.999", method="percentile", percentile=99.999, outliers=0),
    Recipe(label="MSE", outliers=0),
    Recipe(label="min-max + smoothing 0.5", method="minmax", alpha=0.5, outliers=0),
    Recipe(label="min-max + float by drift", method="minmax", outliers=0, measured=True),
    Recipe(label="MSE + float by drift", outliers=0, measured=True),
    Recipe(label="min-max + split", method="minmax"),
    Recipe(label="percentile 99.999 + split", method="percentile", percentile=99.999),
    Recipe(label="MSE + split (default)", measured=True, openvino=True),
    Recipe(label="default, weights to nearest", measured=True, nearest=True, openvino=True),
    Recipe(label="MSE + split + smoothing 0.5", alpha=0.5, measured=True),
    Recipe(label="default, head float", floats=("head",)),
    Recipe(label="default, stem float", floats=("stem",)),
    Recipe(label="default, 7-bit weights", weight_bits=7, measured=True, openvino=True),
    Recipe(label="default, 7-bit weights to nearest", weight_bits=7, measured=True, nearest=True, openvino=True),
)


def session(model: onnx.ModelProto, threads: int, weight_bits: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session whose 8-bit products are exact, also without VNNI."""
    options = ort_backend.options(threads, weight_bits)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def logits(model: onnx.ModelProto, images: np.ndarray, threads: int, weight_bits: int = 8) -> np.ndarray:
    """Logits `[n, classes]` on ONNX Runtime."""
    running = session(model, threads, weight_bits)
    return np.concatenate([running.run(["logits"], {"image": image[None]})[0] for image in images])


def has_vnni() -> bool:
    """Whether int8 kernels on this CPU add products straight into 32 bits."""
    cpu = Path("/proc/cpuinfo")
    return bool({"avx512_vnni", "avx_vnni"} & set(cpu.read_text().split())) if cpu.exists() else False


def openvino_request(model: onnx.ModelProto, threads: int, *, exact: bool) -> openvino.InferRequest:
    """OpenVINO on the same ONNX; f32 for what stays float. `exact` keeps a CPU without VNNI from saturating."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if exact and not has_vnni():
        # The quantized values in float arithmetic: what an int8 kernel with VNNI computes.
        settings["LP_TRANSFORMS_MODE"] = "NO"
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings).create_infer_request()


def openvino_logits(model: onnx.ModelProto, images: np.ndarray, threads: int, weight_bits: int = 8) -> np.ndarray:
    """Logits `[n, classes]` on OpenVINO; 7-bit weights run on the int8 kernels of any CPU."""
    request = openvino_request(model, threads, exact=weight_bits == 8)
    return np.concatenate([np.array(request.infer({"image": image[None]})["logits"]) for image in images])


def observed(program: Program, images: np.ndarray) -> Ranges:
    """What flows through the float Program on calibration images."""
    run = taps(assemble(program, gating="open", taps=True))
    return observe(program.spec, [run], (image[None] for image in track(images, "Observing activations")))


def evaluator(rounded: Rounded, images: np.ndarray, threads: int, weight_bits: int) -> Evaluate:
    """Logits of some calibration images under a plan, as `plan_quantization` asks for them."""

    def evaluate(plan: QuantPlan | None) -> np.ndarray:
        return logits(assemble(rounded(plan), plan, gating="open"), images, threads, weight_bits)

    return evaluate


def weights_on_grid(program: Program, ranges: Ranges, *, nearest: bool = False) -> Rounded:
    """What gives the Program to lower for a plan; lowering rounds to nearest what is not on the grid yet."""
    given = gptq_rounder(program, ranges)
    return lambda plan: program if nearest or plan is None else given(plan)


def plan(recipe: Recipe, program: Program, ranges: Ranges, evaluate: Evaluate) -> QuantPlan:
    made = plan_quantization(
        program,
        ranges,
        weight_bits=7 if recipe.weight_bits == 7 else 8,
        range_method=recipe.method,
        percentile=recipe.percentile,
        max_outliers=recipe.outliers,
        evaluate=evaluate if recipe.measured else None,
    )
    forced = tuple(LinearPlan(name=p.name, int8=False) if p.name in recipe.floats else p for p in made.linears)
    return dataclasses.replace(made, linears=forced)


def accuracy(reference: np.ndarray, got: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    moved = drift(reference, got)
    return {
        "top1": round(float((got.argmax(axis=1) == labels).mean()) * 100, 2),
        "agreement": round(moved.agreement * 100, 2),
        "cosine": round(moved.cosine, 5),
        "kl": round(moved.kl, 5),
        "images": moved.images,
    }


def cpu_ratios(runs: dict[str, Callable[[np.ndarray], Any]], images: np.ndarray) -> dict[str, float]:
    """Median process CPU time of every candidate over the first one's, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(TIMED_RUNS + 3):
        for name, run in runs.items():
            start = time.process_time()
            run(images[index % len(images)][None])
            if index >= 3:
                times[name].append(time.process_time() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    first = next(iter(medians.values()))
    return {name: round(value / first, 4) for name, value in medians.items()}


def tool_model(program: Program, images: np.ndarray, folder: Path) -> onnx.ModelProto:
    """ONNX Runtime's own quantize_static on the same float graph, with the options that measure best for it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(assemble(program, gating="open"), source)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    )
    return onnx.load(target)


def measure(name: str, data: Path, count: int, screen: int, threads: int) -> dict[str, Any]:
    """All recipes on one model."""
    program = from_timm(MODELS[name], weights=data / f"{MODELS[name]}.safetensors")
    calibration = load_images(data / "imagenet-sample-1000.tar", program.spec.image, limit=CALIBRATION_IMAGES).images
    held = load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=count, labelled=True)
    assert held.labels is not None
    images, labels = held.images, held.labels
    started = time.perf_counter()
    ranges = {0.0: observed(program, calibration)}
    seconds = round(time.perf_counter() - started, 1)
    programs = {0.0: program}
    for alpha in {r.alpha for r in RECIPES} - {0.0}:
        programs[alpha] = smooth(program, ranges[0.0], alpha)
        ranges[alpha] = observed(programs[alpha], calibration)
    dense = assemble(program, gating="open")
    reference = logits(dense, images, threads)
    rows: list[dict[str, Any]] = [{"label": "float", **accuracy(reference, reference, labels)}]
    rows[0]["screen_top1"] = accuracy(reference[:screen], reference[:screen], labels[:screen])["top1"]
    rows[0]["openvino"] = accuracy(reference, openvino_logits(dense, images, threads), labels)
    models = {"float": (dense, 8)}
    for recipe in track(RECIPES, f"{name}: recipes"):
        source = programs[recipe.alpha]
        rounded = weights_on_grid(source, ranges[recipe.alpha], nearest=recipe.nearest)
        evaluate = evaluator(rounded, calibration[:DRIFT_IMAGES], threads, recipe.weight_bits)
        started = time.process_time()
        made = plan(recipe, source, ranges[recipe.alpha], evaluate)
        program_on_grid = rounded(made)
        planned = time.process_time() - started
        model = assemble(program_on_grid, made, gating="open")
        models[recipe.label] = (model, recipe.weight_bits)
        n = len(images) if recipe.openvino else min(screen, len(images))
        got = logits(model, images[:n], threads, recipe.weight_bits)
        row = {"label": recipe.label, **accuracy(reference[:n], got, labels[:n])}
        row |= {"int8": sum(p.int8 for p in made.linears), "linears": len(made.linears), "plan_s": round(planned, 1)}
        row["outliers"] = {p.name: list(p.outliers) for p in made.linears if p.outliers}
        row["floats"] = [p.name for p in made.linears if not p.int8]
        row["reasons"] = {p.name: p.reason for p in made.linears if p.reason}
        if recipe.openvino:
            row["openvino"] = accuracy(reference, openvino_logits(model, images, threads, recipe.weight_bits), labels)
        rows.append(row)
        print(json.dumps(row), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tool = tool_model(program, calibration, Path(folder))
    label = "quantize_static of ONNX Runtime"
    n = min(screen, len(images))
    rows.append({"label": label, **accuracy(reference[:n], logits(tool, images[:n], threads), labels[:n])})
    models[label] = (tool, 8)
    add_times(rows, models, calibration)
    local = sensitivity(*_alone(program, ranges[0.0], calibration, threads))
    worst = sorted(local.items(), key=lambda item: -item[1].kl)[:8]
    return {
        "model": MODELS[name],
        "observe_s": seconds,
        "images": {"calibration": len(calibration), "evaluation": len(images), "drift": DRIFT_IMAGES},
        "rows": rows,
        "alone": {key: {"kl": round(value.kl, 5), "agreement": value.agreement} for key, value in worst},
    }


def _alone(
    program: Program, ranges: Ranges, images: np.ndarray, threads: int
) -> tuple[QuantPlan, Evaluate, tuple[str, ...]]:
    """What `sensitivity` needs to show which Linear hurts by itself under plain min-max."""
    naive = plan_quantization(program, ranges, range_method="minmax", max_outliers=0)
    names = tuple(p.name for p in naive.linears)
    return naive, evaluator(weights_on_grid(program, ranges), images[:8], threads, 8), names


def add_times(rows: list[dict[str, Any]], models: dict[str, tuple[onnx.ModelProto, int]], images: np.ndarray) -> None:
    """CPU time of every row over float, with the kernels each would really use on this machine."""
    # 7 asks for the fast kernels, which saturate 8-bit weights here but take the time that VNNI-free builds take.
    runs = {key: _ort_run(model, 7) for key, (model, _) in models.items()}
    ratios = cpu_ratios(runs, images)
    named = {row["label"]: row for row in rows}
    for key, ratio in ratios.items():
        named[key]["cpu_ratio"] = ratio
    runs = {key: _ov_run(models[key][0]) for key in models if "openvino" in named[key]}
    for key, ratio in cpu_ratios(runs, images).items():
        named[key]["openvino"]["cpu_ratio"] = ratio


def _ort_run(model: onnx.ModelProto, weight_bits: int) -> Callable[[np.ndarray], Any]:
    running = session(model, 1, weight_bits)
    return lambda image: running.run(["logits"], {"image": image})


def _ov_run(model: onnx.ModelProto) -> Callable[[np.ndarray], Any]:
    request = openvino_request(model, 1, exact=False)
    return lambda image: request.infer({"image": image})


def table(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = ["# Quantization recipes on real weights", "", document["conditions"], ""]
    for name, result in document["models"].items():
        n = result["images"]
        lines += [
            f"## {name} ({result['model']})",
            "",
            f"{n['calibration']} calibration images, observed in {result['observe_s']} s (wall). Agreement, cosine and "
            "KL are against the float model on the same n evaluation images. Float top-1 on the first "
            f"{min(r['images'] for r in result['rows'])}: {result['rows'][0]['screen_top1']}.",
            "",
            "| recipe | n | top-1 | agreement | cosine | KL | int8 Linears | split columns | CPU / float |"
            " OpenVINO top-1 | agreement | CPU / float |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            ov = row.get("openvino", {})
            cells = [row["label"], row["images"], row["top1"], row["agreement"], row["cosine"], row["kl"]]
            cells += [f"{row['int8']} of {row['linears']}" if "int8" in row else "", _columns(row)]
            cells += [row.get("cpu_ratio", ""), *(ov.get(key, "") for key in ("top1", "agreement", "cpu_ratio"))]
            lines.append("| " + " | ".join(str(c) for c in cells) + " |")
        lines += ["", "Linears that are float or split, and why:", ""]
        lines += [f"- `{key}` ({'; '.join(labels)}): {why}" for (key, why), labels in _reasons(result["rows"]).items()]
        lines += ["", "KL of one Linear alone in int8 (min-max, 8 images), the worst eight:", ""]
        lines += [f"- `{key}`: {value['kl']}" for key, value in result["alone"].items()]
        lines.append("")
    return "\n".join(lines)


def _reasons(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """The recipes that share a reason, per Linear and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for key, why in row.get("reasons", {}).items():
            found.setdefault((key, why), []).append(row["label"])
    return found


def _columns(row: dict[str, Any]) -> str:
    return str(sum(len(columns) for columns in row["outliers"].values())) if "outliers" in row else ""


def conditions(threads: int) -> str:
    vnni = "with VNNI" if has_vnni() else "without VNNI, accuracy as with it (7-bit weights: this CPU's own kernels)"
    return (
        f"Machine: {platform.machine()} {vnni}, onnxruntime {onnxruntime.__version__}, "
        f"openvino {openvino.__version__.split('-')[0]}, {threads} threads for accuracy, 1 for times; load "
        f"{os.getloadavg()[0]:.1f} at the end. CPU time: medians of {TIMED_RUNS} runs, candidates in turn, ratios to "
        f"float on the same runtime, 8-bit products by the kernels this CPU would take. Made by "
        "`python benchmarks/quantization.py`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EDGEVIT_DATA"), help="folder of weights and images"
    )
    parser.add_argument("--models", default=",".join(MODELS), help="which, comma separated")
    parser.add_argument("--evaluate", type=int, default=1000, help="evaluation images")
    parser.add_argument("--screen", type=int, default=400, help="evaluation images of recipes no target could use")
    parser.add_argument("--threads", type=int, default=2, help="of accuracy runs")
    parser.add_argument("--out", type=Path, default=Path("reports/reference"))
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data is needed, or EDGEVIT_DATA set")
    path = arguments.out / "quantization.json"
    # Models measured earlier stay: one can be measured at a time.
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schema": 1, "models": {}}
    for name in arguments.models.split(","):
        document["models"][name] = measure(
            name, Path(arguments.data), arguments.evaluate, arguments.screen, arguments.threads
        )
        document["conditions"] = conditions(arguments.threads)
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())
        write_atomic(arguments.out / "quantization.md", (table(document) + "\n").encode())


if __name__ == "__main__":
    main()
