"""Emulated processors in the report: instructions side by side, no times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from edgevit.report import emulation
from edgevit.report.html import render
from edgevit.report.table import show
from edgevit.report.view import make_report
from edgevit.schema.measurement import (
    CycleEstimate,
    Emulation,
    GoldenParity,
    HeapPeaks,
    Measurement,
    PathCycles,
    PathInstructions,
)
from edgevit.schema.target import load_target
from tests.report.sample import SHA, manifest, measurement


def emulated(cpu: str, dots: float, **changes: Any) -> Measurement:
    told = Emulation(
        emulator="qemu-aarch64 7.2.22",
        cpu=cpu,
        golden=(GoldenParity(path="real", logit_error=0.25, allowed=0.5),),
        instructions=(
            PathInstructions(
                path="all_open",
                effort=1e30,
                branches_open=4,
                images=2,
                total=dots + 2e6,
                classes={"dot": dots, "multiply_add": 0.0, "other": 2e6},
            ),
        ),
        skip="5 runs over 3 gate patterns: exact",
        arena_peak_bytes=7_080_000,
        arena_bytes=7_320_000,
    )
    return replace(measurement(), device="qemu", paths=(), emulation=replace(told, **changes))


def test_processors_stand_side_by_side() -> None:
    both = [emulated("cortex-a76", 54.6e6), emulated("<b>a72</b>", 12.3e6)]
    first, second = emulation.rows(both)
    assert first == ["cortex-a76", "all open", "4.0", "56.6 M", "–", "54.6 M", "–", "–"]
    assert second[5] == "12.3 M" and len(first) == len(emulation.HEAD)
    page = render(make_report(manifest(), both, bundle_sha256=SHA))
    assert "54.6 M" in page and "12.3 M" in page and "&lt;b&gt;a72" in page and "<b>a72" not in page
    assert "arena peak 7.08 MB, bound 7.32 MB" in page


def test_a_measurement_with_times_is_not_among_them() -> None:
    assert emulation.emulated([measurement(), emulated("cortex-a76", 1e6)])[0].device == "qemu"
    page = render(make_report(manifest(), [measurement()], bundle_sha256=SHA))
    assert "Executed per image" not in page


def test_what_was_not_counted_says_why() -> None:
    bare = emulated("cortex-a76", 1e6, skip="", uncounted="there is no C compiler")
    notes = list(emulation.notes(bare))
    assert "instructions not counted: there is no C compiler" in notes
    assert "golden outputs of 1 paths reproduced, logits within 0.25 (0.5 allowed)" in notes[0]


def test_the_report_says_why_a_target_computes_in_float() -> None:
    built = manifest()
    shipped = load_target("rpi4-onnxruntime")
    target = replace(shipped, int8=False, reasons={**shipped.reasons, "int8": "Float: its users ask for every digit."})
    page = render(make_report(replace(built, target=target), bundle_sha256=SHA))
    assert "users ask for every digit" in page and "this target computes in float" in page
    assert "this target computes in float" not in render(make_report(built, bundle_sha256=SHA))
    console = Console(record=True, width=200)
    show(make_report(replace(built, target=target), bundle_sha256=SHA), console)
    assert "users ask for every digit" in console.export_text()


ESTIMATE = CycleEstimate(
    tool="llvm-mca 19.1.7",
    core="neoverse-n1",
    covered=0.99,
    assumptions=("pipeline: one thread", "lower bound: every load hits"),
    paths=(
        PathCycles(path="all_open", images=2, lower_cycles=135e6, hits_cycles=140e6, upper_cycles=420e6, misses=(5, 4)),
    ),
)


def test_cycles_are_a_range_with_what_it_rests_on_and_never_a_time() -> None:
    heap = HeapPeaks(loading_bytes=9_000_000, loaded_bytes=7_000_000, running_bytes=8_000_000)
    told = emulated("cortex-a76", 1e6, estimate=ESTIMATE, heap=heap, bound_bytes=7_500_000)
    notes = list(emulation.notes(told))
    assert "cycles per image, an estimate and no measurement, by llvm-mca 19.1.7: all open 135 M to 420 M" in notes
    assert {"pipeline: one thread", "lower bound: every load hits"} <= set(notes)
    assert "heap peak 8.00 MB running, 9.00 MB loading, runtime included; memory bound 7.50 MB, without the" in str(
        notes
    )
    page = render(make_report(manifest(), [told], bundle_sha256=SHA))
    assert "an estimate and no measurement" in page and "8.00 MB running" in page


def test_without_an_estimate_or_a_heap_the_reason_is_told() -> None:
    notes = list(emulation.notes(emulated("cortex-a76", 1e6, unestimated="no llvm-mca", unaccounted="no compiler")))
    assert {"cycles not estimated: no llvm-mca", "heap not counted: no compiler"} <= set(notes)
    assert "heap not counted" in list(emulation.notes(emulated("cortex-a76", 1e6)))
