"""The folder of a training run: what it may hold, and the state to go on from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.compress.training import checkpoint
from edgevit.compress.training.log import CSV_NAME
from edgevit.compress.training.recipe import load_recipe, to_toml
from edgevit.compress.usdc.inputs import Training
from edgevit.errors import OutputError, ProgramError, TrainingError
from edgevit.program.original import weights_digest
from edgevit.program.program import Program, check_spec, expected_shapes
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import write_plan
from edgevit.util import atomic, strict_json
from edgevit.util.limits import SETTINGS_BYTES, LimitError, read_regular
from edgevit.util.ownership import Kind

CHECKPOINT = "checkpoint.pt"
RECIPE, RESULT = "recipe.toml", "result.json"
PLANNED = "planned"  # folder of the given model with the plan of merges that was searched
OUTPUTS: Mapping[str, Kind] = {"program": "program", PLANNED: "program", CSV_NAME: "log", RESULT: "result"}
STAGES = ("joint", "recover")
FREE = ("workers", "checkpoint_seconds")  # of a recipe: may differ when a run is resumed


def find_state(job: Training, resume: bool) -> dict[str, Any] | None:
    """Return the state to go on from; None where training begins.

    Raises:
        OutputError: a run is there already (and `resume` is false), or a file that is not a run's.
        TrainingError: the checkpoint is damaged, or of a run with other inputs.
    """
    path = job.folder / CHECKPOINT
    find_free(job.folder, resume=resume)
    if not resume:
        if job.world.main:
            job.folder.mkdir(parents=True, exist_ok=True)
        job.world.barrier()
        return None
    if not path.exists():
        job.folder.mkdir(parents=True, exist_ok=True)
        return None
    state = checkpoint.load(path)
    now = facts_of(job)
    before: Any = state.get("facts")
    stage, inner = state.get("stage"), state.get("state")
    known = isinstance(stage, str) and stage in STAGES and isinstance(state.get("spec"), str)
    told = isinstance(before, dict) and all(isinstance(fact, str) for fact in before.values())
    begun = isinstance(inner, dict) and type(inner.get("step")) is int
    if not (known and told and begun):
        raise TrainingError(f"{path} is no checkpoint of `edgevit compress`; choose another folder with -o")
    changed = [
        f"{k} was {before.get(k, 'not given')}, is now {now.get(k, 'not given')}"
        for k in before.keys() | now
        if before.get(k) != now.get(k)
    ]
    if changed:
        raise TrainingError(
            f"{path} belongs to a run with other inputs: {'; '.join(sorted(changed))}. Resume with the same ones, or "
            "choose another folder with -o"
        )
    return state


def find_free(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run already (and `resume` is false), or a file that is not a run's."""
    refuse_foreign(folder)
    if not resume and ((folder / CHECKPOINT).exists() or (folder / "program").exists()):
        raise OutputError(f"{folder} holds a training run already; pass --resume to go on, or another -o")


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder where a file that the run will write is already, and is not of a run."""
    atomic.sweep(folder)
    for name, kind in OUTPUTS.items():
        atomic.refuse_foreign(folder / name, kind)
    recipe = folder / RECIPE
    try:
        written = read_regular(recipe, SETTINGS_BYTES) if os.path.lexists(recipe) else None
        whole = written is None or written == to_toml(load_recipe(recipe)).encode()
    except (TrainingError, OSError, LimitError):
        whole = False
    if not whole or recipe.is_symlink():
        raise OutputError(
            f"{recipe} is not what a training run leaves there, and would be replaced; choose another folder with -o, "
            "or move it away"
        )


def facts_of(job: Training) -> dict[str, str]:
    """Return what a run must have in common with the one it resumes, in words."""
    recipe = strict_json.to_data(job.recipe)
    augment = recipe.pop("augment")
    numbers = {**recipe, **{f"augment.{k}": v for k, v in augment.items()}}
    return {
        "model": f"weights {weights_digest(job.dense)[:16]}",
        "teacher": "none" if job.teacher is None else f"weights {weights_digest(job.teacher)[:16]}",
        "data": f"{len(job.data)} images, digest {job.data.digest[:16]}",
        "expected MACs": f"{job.budgets.expected:.6g}",
        "static MACs": f"{job.budgets.static:.6g}",
        **({"tokens": write_plan(replace(job.dense.spec, merges=job.merges))} if job.merges else {}),
        **job.notes,
        **{f"recipe {k}": str(v) for k, v in numbers.items() if k not in FREE},
    }


def program_of(state: Mapping[str, Any]) -> Program:
    """Return a Program of the right shape for a state's model; its arrays are filled when the state is restored."""
    faults: list[str] = []
    try:
        spec = strict_json.from_data(ProgramSpec, strict_json.parse(state["spec"]), faults, "checkpoint")
    except ValueError as error:
        raise TrainingError(f"the checkpoint's model cannot be read: {error}; train anew without --resume") from error
    if spec is None:
        raise TrainingError("the checkpoint's model cannot be read:\n  " + "\n  ".join(faults))
    try:
        check_spec(spec)
    except ProgramError as error:
        raise TrainingError(f"the checkpoint's model is none: {error}; train anew without --resume") from error
    shapes = expected_shapes(spec)
    needed, held = sum(map(math.prod, shapes.values())), checkpoint.count_numbers(state)
    if needed > max(1 << 20, 2 * held):  # before they are allocated
        raise TrainingError(f"the checkpoint's model has {needed} weights, and it holds {held}; it is damaged")
    return Program(spec=spec, weights={n: np.zeros(s, dtype=np.float32) for n, s in shapes.items()})


def kept(folder: Path) -> str:
    """Return what a run that was stopped left to go on from, in words."""
    path = folder / CHECKPOINT
    if not path.exists():
        return f"{folder} holds no checkpoint yet; start anew"
    try:
        state = checkpoint.load(path)
    except TrainingError as error:
        return str(error)
    return f"{path} is kept, of step {state.get('step')} in stage {state.get('stage')!r}; go on with --resume"
