"""What benchmarks/peers.py measured, as data and as a markdown document."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cpu_class import VNNI
from benchmarks.peer_builds import OPSET
from benchmarks.peer_optional import told
from benchmarks.timing import Ratio
from edgevit.schema.claims import Drop, Fraction
from edgevit.schema.measurement import Environment

FLOAT = "ORT fp32"
HALVED = "without VNNI and with vector units of 128 bits, which take 256 in two halves"
ASKED_DROP, ASKED_AGREEMENT = 0.008, 0.95
# Of the fastest int8 peer of the runtime's own tools (TVM: of any runtime), and of the graph built by hand.
ASKED_TIME = {"ORT": 0.85, "OV": 0.95, "TVM": 1.05}
ASKED_BY_HAND = 0.92
ASKED_FLOAT = 0.85  # edgevit's float builds, of ONNX Runtime's float
# Of builds that merge tokens: time of the fastest peer of any runtime, for a drop of no more.
ASKED_MERGED, ASKED_MERGED_DROP = 0.42, 0.010


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1, what it is below the float model's (paired), and how often both name the same class."""

    top1: Fraction
    drop: Drop
    agreement: Fraction

    def __str__(self) -> str:
        drop, agreement = self.drop, self.agreement
        return " | ".join(
            (
                f"{self.top1.value:.1%}",
                f"{100 * drop.value:+.1f} ({100 * drop.low:+.1f} to {100 * drop.high:+.1f})",
                f"{agreement.value:.1%} ({agreement.low:.1%} to {agreement.high:.1%})",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one candidate. Ratios are of CPU time; the fastest peer is of the same runtime, int8.

    TVM, which no peer takes, stands beside the fastest of any runtime. `to_hand_built` is the ratio to the graph that
    was built by hand for the runtime, which no tool makes.
    `exact` is a peer's accuracy with int8 computed in float, where this CPU's kernels saturate: what VNNI gives.
    Of edgevit's int8 builds: which Linears its plan keeps float, and how many input columns it computes in float,
    and the share of the MACs that merging tokens was to leave, None for a dense model.
    """

    model: str
    name: str
    runtime: str
    own: bool
    int8: bool
    bytes: int
    cpu_median_ms: float
    wall_median_ms: float
    to_float: Ratio
    to_fastest_peer: Ratio | None
    fastest_peer: str | None
    accuracy: Accuracy | None = None
    exact: Accuracy | None = None
    float_linears: tuple[str, ...] = ()
    outlier_columns: int = 0
    to_hand_built: Ratio | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything peers.md is made of."""

    command: str
    machine: Environment
    runs: int
    images: int
    calibration: int
    rows: tuple[Row, ...] = ()
    halves: bool = False


def table(report: Report) -> str:
    """The rows as a markdown document, one table per model."""
    m = report.machine
    kind = HALVED if report.halves else "with VNNI" if VNNI & set(m.isa) else "without VNNI"
    lines = [
        f"# edgevit beside the peers' own tools, on a CPU {kind}",
        "",
        f"`{report.command}`",
        "",
        f"{m.cpu}, {m.cores} cores ({', '.join(m.isa)}), {m.system}, Python {m.python}, {m.runtime_version}; load "
        f"{m.load_average_before} before, {m.load_average_after} after. Batch 1, one thread, {report.runs} rounds, all "
        "candidates of a model interleaved in one process on real images. CPU: median process CPU time. A ratio is the "
        "median over rounds of the quotient within a round, with its 95 % interval.",
        "",
        f"Top-1 and agreement with {FLOAT} on {report.images} images of ImageNet's validation set (first files, centre "
        f"crop of 224 x 224), with 95 % intervals; drop: top-1 lost against {FLOAT} on the same images (paired). All "
        f"tools calibrate on the same {report.calibration} images of another set.",
        "",
        f"Peers. {FLOAT}: torch.onnx export (dynamo, opset {OPSET}); all peers start from it, but where said. ORT "
        "static: optimised to Gemm first, QDQ U8S8 per channel, attention products and outputs float; ORT dynamic: per "
        "channel; both with 8-bit weights and with reduce_range (7 bits). ORT by hand: the same dynamic quantization, "
        "of a graph that was built of com.microsoft's Attention and FastGelu, which no exporter makes; it is not among "
        "what the runtime's own tools make. NNCF: preset MIXED or, where it says so, PERFORMANCE, model type "
        f"TRANSFORMER. {told({r.runtime for r in report.rows})} "
        "edgevit's builds by TVM stand beside the fastest peer of any runtime; those with --macs merge tokens, without "
        "labels or training. Peers take normalised float images, "
        "edgevit's builds take pixels and normalise inside.",
    ]
    if any(r.exact for r in report.rows):
        lines += [
            "",
            "This CPU has no VNNI, so the int8 kernels of both runtimes saturate with 8-bit weights. edgevit loads its "
            "8-bit targets in a way that is exact at some cost in time (ONNX Runtime: other kernels; OpenVINO: int8 "
            "values computed in float); the peers' builds run as the tools leave them. The row `exact` gives NNCF's "
            "accuracy with int8 values computed in float, as a CPU with VNNI computes them. For a bf16 hint OpenVINO "
            "computes in f32 here.",
        ]
    for model in dict.fromkeys(r.model for r in report.rows):
        lines += [
            "",
            f"## {model}",
            "",
            f"| build | MB | CPU ms | x {FLOAT} | x fastest int8 peer of the runtime | top-1 | drop | agreement |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_line(row) for row in report.rows if row.model == model),
            "",
            *(_verdict(row) for row in report.rows if row.model == model and row.own),
        ]
    return "\n".join(lines) + "\n"


def _line(r: Row) -> str:
    name = f"**{r.name}**" if r.own else r.name
    versus = f"{r.to_fastest_peer} x {r.fastest_peer}" if r.to_fastest_peer else ""
    cells = (name, f"{r.bytes / 1e6:.2f}", f"{r.cpu_median_ms:.2f}", str(r.to_float), versus)
    line = f"| {' | '.join(cells)} | {r.accuracy or ' | | '} |"
    return line + (f"\n| {name}, exact | | | | | {r.exact} |" if r.exact else "")


def _verdict(r: Row) -> str:
    """What was asked of edgevit's builds, and whether it is so here."""
    if not r.int8:
        held = "met" if r.to_float.value <= ASKED_FLOAT else "**missed**"
        return f"- {r.name}: {r.to_float.value:.3f} of {FLOAT} (at most {ASKED_FLOAT}): {held}."
    assert r.to_fastest_peer is not None
    asked = ASKED_MERGED if r.share and r.runtime == "TVM" else ASKED_TIME[r.runtime]
    most = ASKED_MERGED_DROP if r.share else ASKED_DROP
    checks = [(r.to_fastest_peer.value <= asked, f"time {r.to_fastest_peer.value:.3f} (at most {asked})")]
    if r.to_hand_built:
        time = r.to_hand_built.value
        checks.append((time <= ASKED_BY_HAND, f"{time:.3f} of the graph built by hand (at most {ASKED_BY_HAND})"))
    for accuracy, how in ((r.accuracy, ""), (r.exact, "exact: ")):
        if accuracy:
            drop, agreement = accuracy.drop.value, accuracy.agreement.value
            checks.append((drop <= most, f"{how}drop {100 * drop:.1f} points (at most {100 * most:.1f})"))
            if not r.share:
                said = f"{how}agreement {agreement:.1%} (at least {ASKED_AGREEMENT:.0%})"
                checks.append((agreement >= ASKED_AGREEMENT, said))
    result = "; ".join(f"{text}: {'met' if held else '**missed**'}" for held, text in checks)
    kept = f"{len(r.float_linears)} Linears ({', '.join(r.float_linears)})" if r.float_linears else "no Linear"
    return f"- {r.name}: {result}. Float: {kept} and {r.outlier_columns} input columns."
