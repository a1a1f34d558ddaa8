"""A report made of a bundle's manifest and a made-up measurement, for tests of what is shown."""

from __future__ import annotations

from typing import Any

from edgevit.measure.percentiles import latency
from edgevit.schema.manifest import Manifest, PathName
from edgevit.schema.measurement import (
    BranchMeasurement,
    Environment,
    ImagesUsed,
    Measurement,
    MemoryPoint,
    MemoryTrace,
    PathLatency,
    ProcessMemory,
)
from tests.bundles import sample_manifest
from tests.tiny import tiny_program

SHA = "ab" * 32
ENVIRONMENT = Environment(
    cpu="Great CPU 9000",
    arch="x86_64",
    isa=("avx2", "fma"),
    cores=2,
    governor=None,
    frequency_before_mhz=2000.0,
    frequency_after_mhz=2100.0,
    temperature_before_c=None,
    temperature_after_c=None,
    load_average_before=0.5,
    load_average_after=0.6,
    memory_total_bytes=8_000_000_000,
    system="Some Linux 1",
    python="3.11.0",
    runtime="onnxruntime",
    runtime_version="1.31.1",
    inference_precision="f32",
    threads=1,
)


def manifest(**options: Any) -> Manifest:
    return sample_manifest(tiny_program(**{"gated": True, "removed": ("b01_ffn",), **options}))


def path(name: PathName, wall_ms: float, branches_open: float, runs: int = 100, cpu_ms: float = 0.0) -> PathLatency:
    wall = [wall_ms * (1 + 0.001 * (i % 10)) for i in range(runs)]
    cpu = [(cpu_ms or wall_ms) * (1 + 0.001 * (i % 10)) for i in range(runs)]
    return PathLatency(path=name, effort=0.0, branches_open=branches_open, wall=latency(wall), cpu=latency(cpu))


def measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "bundle": "tiny",
        "bundle_sha256": SHA,
        "edgevit": "0.1.0",
        "environment": ENVIRONMENT,
        "images": ImagesUsed(count=50, timed=25, digest="cd" * 32, golden=False),
        "paths": (path("all_open", 10.0, 3), path("all_skipped", 1.0, 0), path("real", 4.0, 1.5)),
        "expected_wall_ms": 4.4,
        "expected_cpu_ms": 4.0,
        "branches": tuple(
            BranchMeasurement(name=n, open_rate=r, open_time_ms=t, skipped_time_ms=s, time_source="traced")
            for n, r, t, s in (
                ("b00_mhsa", 0.25, 2.5, 0.02),
                ("b00_ffn", 0.0, 3.5, 0.021),
                ("b01_mhsa", 1.0, 2.6, 0.02),
                ("b01_ffn", 0.0, 0.01, None),
            )
        ),
        "unattributed_time_ms": 1.4,
        "memory": MemoryTrace(
            of="runtime",
            peak_bytes=390_000,
            points=(
                MemoryPoint(time_ms=0.1, bytes=300_000, where="stem/y"),
                MemoryPoint(time_ms=2.0, bytes=390_000, where="b00_mhsa.qkv/y"),
                MemoryPoint(time_ms=3.0, bytes=350_000, where="fused_7"),
                MemoryPoint(time_ms=6.0, bytes=380_000, where="b01_mhsa.qkv/y"),
                MemoryPoint(time_ms=8.0, bytes=310_000, where="head/y"),
                MemoryPoint(time_ms=9.0, bytes=310_000, where="b00_mhsa.gate/open"),
            ),
        ),
        "process": ProcessMemory(imported_bytes=48_000_000, loaded_bytes=60_000_000, peak_bytes=70_000_000),
        "load_ms": 80.0,
        "first_run_ms": 12.0,
    }
    return Measurement(**{**values, **changes})
