"""Where the time of a build goes, from Program to bundle, with 300 images: a part of reports/reference/build-cost.*.

    EDGEVIT_DATA=DIR python -m benchmarks.build_stages --work out/backends -o reports/reference

EDGEVIT_DATA is that of benchmarks/peers.py. The Programs are kept in --work. Every build runs in a fresh process, from
the start of Python on. Wall times mean what they say on a quiet machine only; on a busy one look at CPU times, half of
which two cores take at least.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.build_cost import MAXRSS_BYTES, STAGED, finished, machine, update
from benchmarks.peer_candidates import MODELS
from benchmarks.peers import data_folder
from benchmarks.staged_build import Build
from edgevit.program.program import is_program, save_program
from edgevit.util import strict_json

TARGET = "x86-64-avx512vnni-tvm"
MODEL = "deit_tiny"
ASKED_S = 30.0
GATED, MERGED = "gated", "merged"
GATE, GATE_IMAGES, TOKENS = 0.75, 64, "4:60,8:60"


def programs(work: Path, data: Path) -> dict[str, Path]:
    """Return the Programs that are built, made where they are missing: a gated one, and one that merges tokens."""
    from edgevit.compress.budgets import Budgets
    from edgevit.frontends.from_timm import from_timm
    from edgevit.images.image_set import load_images
    from edgevit.pipeline import compress, merge_tokens

    folders = {kind: work / f"{MODEL}-{kind}" / "program" for kind in (GATED, MERGED)}
    if all(is_program(folder) for folder in folders.values()):
        return folders
    dense = from_timm(MODELS[MODEL], weights=data / f"{MODELS[MODEL]}.safetensors")
    images = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=GATE_IMAGES).images
    for kind, folder in folders.items():
        if not is_program(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = compress(dense, images, Budgets(expected=GATE)) if kind == GATED else merge_tokens(dense, TOKENS)
            save_program(made, folder, storage="float16")
    return folders


def measure(model: str, program: Path, target: str, source: Path, images: int) -> Build:
    """Build in a fresh process."""
    given = json.dumps([model, str(program), target, str(source), images, time.time()])
    answer, usage = finished([sys.executable, "-m", "benchmarks.staged_build", given])
    faults: list[str] = []
    found = strict_json.from_data(Build, answer, faults, "build")
    if found is None:
        raise SystemExit("; ".join(faults))
    return replace(found, peak_bytes=usage.ru_maxrss * MAXRSS_BYTES)


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False), help="Keeps the Programs.")
@click.option("--target", default=TARGET, show_default=True, help="Of this machine.")
@click.option("--images", default=300, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(work: Path, target: str, images: int, out: Path) -> None:
    """Write the stages of build-cost.json and build-cost.md."""
    data = data_folder()
    source, load = data / "imagenet-sample-1000.tar", [os.getloadavg()[0]]
    made = programs(work, data)
    builds = [measure(f"{MODEL}, {kind}", folder, target, source, images) for kind, folder in made.items()]
    load.append(os.getloadavg()[0])
    command = "EDGEVIT_DATA=DIR python -m benchmarks.build_stages --work DIR"
    told = {"command": command, **machine(target), "load": load, "asked_s": ASKED_S}
    update(out, {STAGED: {**told, "builds": strict_json.to_data(builds)}})


if __name__ == "__main__":
    main()
