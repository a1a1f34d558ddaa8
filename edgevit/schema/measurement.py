"""What a device measured of a bundle: a Measurement, a file of its own beside the bundle.

Plain data: numbers are numbers, their unit is the end of their name. A Measurement names the bundle by the sha256 of
its `manifest.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevit.schema.manifest import PathName
from edgevit.schema.points import PointName
from edgevit.schema.target import Target
from edgevit.util.notebook import Shown

MEASUREMENT_SCHEMA = 1
# Instruction sets that change how fast or how exactly a ViT runs, as /proc/cpuinfo names them on x86 and on ARM.
ISA = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
SAME_ARCH = {"arm64": "aarch64", "AMD64": "x86_64"}  # as other systems call them


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine of a measurement. None: the system does not tell.

    `cpu_part` is an ARM core's part number, `cpus` those that the process was held to (None: all), `throttling` the
    signs seen before or after that the clock was held down, `emulated_by` the emulator that played this machine,
    `others_cpus` how many CPUs' worth of work other programs did while the runs were timed.
    """

    cpu: str
    arch: str
    isa: tuple[str, ...]
    cores: int
    governor: str | None
    frequency_before_mhz: float | None
    frequency_after_mhz: float | None
    temperature_before_c: float | None
    temperature_after_c: float | None
    load_average_before: float | None
    load_average_after: float | None
    memory_total_bytes: int | None
    system: str
    python: str
    runtime: str
    runtime_version: str
    inference_precision: str
    threads: int
    cpu_part: str | None = None
    cpus: tuple[int, ...] | None = None
    throttling: tuple[str, ...] | None = None
    emulated_by: str | None = None
    others_cpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of single runs. A percentile is None where n is too small to claim it (p90 64, p95 130, p99 662 runs)."""

    runs: int
    median_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PathLatency:
    """Latency of one gate path. `cpu` is process CPU time; `branches_open` the mean number of branches that ran."""

    path: PathName
    effort: float
    branches_open: float
    wall: Latency
    cpu: Latency


@dataclass(frozen=True, kw_only=True)
class PointLatency:
    """Time of an image at one of the bundle's operating points.

    `expected_*` is the mean over the images of each image's median time, `worst_*` the median of the image that took
    longest; `p95_*` is of the runs (None: too few). `branches_open` is the mean number of branches that ran.
    """

    name: PointName
    effort: float
    branches_open: float
    expected_wall_ms: float
    expected_cpu_ms: float
    worst_wall_ms: float
    worst_cpu_ms: float
    p95_wall_ms: float | None = None
    p95_cpu_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class BranchMeasurement:
    """One branch on the device: share of the images that opened it, median time when it runs and when it is skipped.

    A time is None where the runtime does not tell it; `time_source` says how it was taken.
    """

    name: str
    open_rate: float
    open_time_ms: float | None
    skipped_time_ms: float | None
    time_source: str


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """Memory in use at one moment of a run, in the terms of the bound (or of the process, see `MemoryTrace.of`)."""

    time_ms: float
    bytes: int
    where: str


@dataclass(frozen=True, kw_only=True)
class MemoryTrace:
    """Memory over one all-open run. `of`: 'runtime' (weights and arena, comparable with the bound) or 'process'."""

    of: Literal["runtime", "process"]
    peak_bytes: int
    points: tuple[MemoryPoint, ...]


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Resident memory of a fresh process with numpy and the runtime only, or of the C++ runner of machine code.

    After importing them (the runner: when it began to load), after loading the model, and its high-water mark after
    running every path.
    """

    imported_bytes: int
    loaded_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class ImagesUsed:
    """The images of a measurement: gates were watched on all of them, and a spread part was timed.

    `golden` says that only the bundle's own golden inputs were used.
    """

    count: int
    timed: int = 0
    digest: str
    golden: bool
    unreadable: int = 0


@dataclass(frozen=True, kw_only=True)
class GoldenParity:
    """A golden input run again: the largest absolute logit difference, what the manifest allows, gates and tokens."""

    path: PathName
    logit_error: float
    allowed: float
    gates_equal: bool = True
    tokens_equal: bool = True

    @property
    def other(self) -> str:
        """Return what is not the same beside logits, in words; nothing where it is."""
        return "other gates" if not self.gates_equal else "" if self.tokens_equal else "other numbers of tokens"

    @property
    def held(self) -> bool:
        return not self.other and self.logit_error <= self.allowed


@dataclass(frozen=True, kw_only=True)
class PathInstructions:
    """Instructions that one inference executes on one path, mean over `images`; `classes` add up to `total`."""

    path: PathName
    effort: float
    branches_open: float
    images: int
    total: float
    classes: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PathCycles:
    """Cycles one inference is estimated to take on one path: at least and at most, as the estimate's assumptions say.

    `lower_cycles` and `hits_cycles`, the upper bound if no cache missed, are means over `images`; `misses`, of each
    data cache, are counted in one of them.
    """

    path: PathName
    images: int
    lower_cycles: float
    hits_cycles: float
    upper_cycles: float
    misses: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CycleEstimate:
    """A range of cycles from executed blocks and a model of the core: an estimate with assumptions, no measurement.

    `covered` is the share of executed instructions that the analysed blocks hold; the rest is taken to be as fast.
    """

    tool: str
    core: str
    covered: float
    assumptions: tuple[str, ...]
    paths: tuple[PathCycles, ...]


@dataclass(frozen=True, kw_only=True)
class HeapPeaks:
    """Heap and anonymous memory of the process, over what it held before it loaded the model.

    At most while loading, then held, and at most while running; the runtime's own objects are part of it.
    """

    loading_bytes: int
    loaded_bytes: int
    running_bytes: int


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Another form of the same model, timed in the same run, its runs between those of the bundle.

    `name` says which: the dense model in float, or what a runtime makes of it by itself. None: it was not timed, and
    `why` says so.
    """

    name: str
    runtime: str
    runtime_version: str
    wall: Latency | None = None
    cpu: Latency | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """What an emulated processor tells of a bundle: its results and its instructions, never its time.

    `skip` says what the exact check of the counts found; without counts it is empty and `uncounted` says why.
    `arena_peak_bytes` is the runtime's own figure there, `arena_bytes` the bound's for it (None: it has no arena).
    `estimate` and `heap` are None where `unestimated` and `unaccounted` say why; `bound_bytes` is the whole bound.
    """

    emulator: str
    cpu: str
    golden: tuple[GoldenParity, ...]
    instructions: tuple[PathInstructions, ...] = ()
    skip: str = ""
    uncounted: str = ""
    arena_peak_bytes: int | None = None
    arena_bytes: int | None = None
    estimate: CycleEstimate | None = None
    unestimated: str = ""
    heap: HeapPeaks | None = None
    unaccounted: str = ""
    bound_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement(Shown):
    """What one device measured of one bundle.

    `expected_*` is the mean over the images of each image's median time. `unattributed_time_ms` is what a traced
    all-open run spends outside the branches: stem, gates, head and the runtime itself (None: not told). `warnings` say
    what spoils the figures, `golden` how the bundle's golden inputs came out there. An emulated machine has no times:
    they are None and `paths` is empty; what edgevit's own emulated device tells instead is in `emulation`.
    `gates` says for every image which branches ran: a 1 or a 0 per branch, in order; `tokens` how many patch tokens
    were left after each point where they merge (none where their number is fixed). `baselines` were timed beside it.
    `effort` is that of the real path, `points` are the times of the bundle's named operating points (none: another
    effort than the calibrated one was asked for, or the bundle has none). `device` is how the machine was reached.
    `not_the_device` says so where this machine is another than the bundle was built for (see the function below).
    """

    schema: int = MEASUREMENT_SCHEMA
    bundle: str
    bundle_sha256: str
    edgevit: str
    device: str = "local"
    environment: Environment
    images: ImagesUsed
    paths: tuple[PathLatency, ...]
    expected_wall_ms: float | None
    expected_cpu_ms: float | None
    branches: tuple[BranchMeasurement, ...]
    unattributed_time_ms: float | None
    memory: MemoryTrace | None
    process: ProcessMemory | None
    load_ms: float | None
    first_run_ms: float | None
    warnings: tuple[str, ...] = ()
    golden: tuple[GoldenParity, ...] = ()
    emulation: Emulation | None = None
    not_the_device: str = ""
    gates: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    baselines: tuple[Baseline, ...] = ()
    effort: float = 0.0
    points: tuple[PointLatency, ...] = ()


def not_the_device(target: Target, machine: Environment) -> str:
    """Return what to say first where times of `machine` are not those of a bundle's target; nothing where they may be.

    Another architecture, or a CPU without instructions that the target counts on, as far as a measurement names them.
    """
    arch = SAME_ARCH.get(machine.arch, machine.arch)
    needs = [set(need.split("|")) for need in target.requires_flags]
    lacking = ["|".join(sorted(need)) for need in needs if need <= set(ISA) and not need & set(machine.isa)]
    if arch == target.arch and (not lacking or not machine.isa):
        return ""
    without = f", without {', '.join(lacking)}" if arch == target.arch else ""
    meant = target.description or target.name
    return f"measured on {machine.cpu} ({machine.arch}{without}), which is not the device this was built for: {meant}"
