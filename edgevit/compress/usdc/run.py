"""One training run in its folder: its stages one by one, with checkpoints, log and display.

Which stage follows which is said in `edgevit.pipeline.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import __version__
from edgevit.compress.training import checkpoint
from edgevit.compress.training.batches import Batches, evaluation
from edgevit.compress.training.head import fit_head, is_new
from edgevit.compress.training.log import Log
from edgevit.compress.training.loop import StageSettings, fit, stage_steps
from edgevit.compress.training.precision import bfloat16
from edgevit.compress.training.show import BranchState, Show
from edgevit.compress.training.teacher import Teacher
from edgevit.compress.usdc.hooks import StageHooks
from edgevit.compress.usdc.inputs import HeldOut, Training, batches_of, check_inputs, split_data
from edgevit.compress.usdc.resume import CHECKPOINT, STAGES, facts_of, find_state, program_of
from edgevit.compress.usdc.stages import stage_settings
from edgevit.images.labelled import LabelledSet, subset
from edgevit.program.original import original_of, weights_digest, with_original
from edgevit.program.program import Program, save_program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import write_plan
from edgevit.torch_form.vit import Vit
from edgevit.util import strict_json
from edgevit.util.progress import Say

COLUMNS = ("stage", "loss", "rate", "gradient", "macs", "macs_budget", "static_macs", "price", "images_per_s")


def begin(job: Training, *, resume: bool, say: Say) -> Run:
    """Look at every input and at the folder; return the run, which has done nothing yet.

    Raises:
        TrainingError, BudgetError, ImagesError, OutputError: see `edgevit.pipeline.train`.
    """
    check_inputs(job)
    state = find_state(job, resume)
    held, trained = split_data(job)
    return Run(
        job=job, held=held, trained=trained, source=batches_of(job, trained), facts=facts_of(job), state=state, say=say
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A training that begins, or goes on from a state of one of its stages.

    Attributes:
        job: what was asked for.
        held: images that set thresholds and mean outputs.
        trained: the others.
        source: micro-batches of `trained`.
        facts: what a checkpoint must have in common with the run that resumes it.
        state: the checkpoint to go on from (None: there is none).
        say: told what a person should know.
    """

    job: Training
    held: HeldOut
    trained: LabelledSet
    source: Batches
    facts: dict[str, str]
    state: Mapping[str, Any] | None
    say: Say

    def interrupted(self) -> Program | None:
        """Return a Program of the shape that the checkpoint's stage trains (`stage` fills its arrays), or None."""
        return None if self.state is None else program_of(self.state)

    def dense_with_head(self) -> Program:
        """Return the model to compress; a head of zeros is fitted first, so that importance says something."""
        job = self.job
        if not (job.budgets.compresses and is_new(job.dense)):
            return job.dense
        self.say("the head is new: it is fitted to the features first, so that importance says something")
        return fit_head(job.dense, self.trained, job.recipe.seed)

    def gate_images(self) -> np.ndarray:
        """Return the training images that gates are measured on, uint8 `[n, height, width, 3]`."""
        chosen = np.random.default_rng([*b"gates", self.job.recipe.seed]).permutation(len(self.trained))
        return evaluation(subset(self.trained, chosen[: self.job.recipe.gate_images]), self.job.dense.spec.image)[0]

    @property
    def learns(self) -> bool:
        """Return whether the training has a stage 1, in which pruning and gates are learned."""
        return self.job.budgets.learned or (self.state is not None and self.state["stage"] == "joint")

    def due(self, stage: str) -> bool:
        """Return whether a stage is asked for and not over yet."""
        if stage == "joint":
            return self.learns and (self.state is None or self.state["stage"] == "joint")
        return self.job.recipe.epochs_recover > 0

    def stage(self, name: str, program: Program) -> tuple[Vit, StageHooks]:
        """Train a stage from its beginning, or from the checkpoint where that is of this stage.

        Raises:
            TrainingError: the loss is not finite, or the checkpoint does not fit; the last checkpoint stays.
        """
        job, model = self.job, Vit(program)
        freeze_features(model)
        hooks = StageHooks(model, job.dense.spec, job.budgets, job.recipe, job.world, joint=name == "joint")
        settings = self._settings(name)
        resumed = self.state["state"] if self.state is not None and self.state["stage"] == name else None
        first, start = settings.first_step, 0 if resumed is None else resumed["step"]

        def save(step: int, inner: dict[str, Any]) -> None:
            if job.world.main:
                document = {
                    "stage": name,
                    "step": first + step,
                    "facts": self.facts,
                    "spec": strict_json.dumps(program.spec),
                    "state": inner,
                }
                checkpoint.save(job.folder / CHECKPOINT, document)
            job.world.barrier()

        with _Reporter(self, name, first, start, stage_steps(self.source, settings), hooks) as report:
            fit(
                model,
                self.source,
                settings,
                hooks,
                teacher=self._teacher(),
                world=job.world,
                report=report,
                save=save,
                resume=resumed,
                device=job.device,
            )
        return model, hooks

    def _settings(self, name: str) -> StageSettings:
        recipe, joint = self.job.recipe, name == "joint"
        after_joint = not joint and self.learns
        return stage_settings(
            recipe,
            joint=joint,
            bfloat16=bfloat16(recipe.precision, self.job.device),
            first_step=recipe.epochs_joint * (self.source.steps // recipe.accumulate) if after_joint else 0,
            learns=self.job.teacher is not None,
        )

    def _teacher(self) -> Teacher | None:
        job = self.job
        if job.teacher is None:
            return None
        precision = "bfloat16" if bfloat16(job.recipe.precision, job.device) else "float32"
        name = f"{weights_digest(job.teacher)} {precision}"
        return Teacher(
            Vit(job.teacher).to(job.device), name=name, folder=job.teacher_cache, tokens=job.recipe.tokens > 0
        )


class _Reporter:
    """Log and display of one stage; silent on every process but the first."""

    def __init__(self, run: Run, stage: str, first: int, start: int, total: int, hooks: StageHooks) -> None:
        self._first, self._hooks, main = first, hooks, run.job.world.main
        self._stage = STAGES.index(stage)
        self._log = Log(run.job.folder, resume_at=first + start + 1 if first + start else 0) if main else None
        self._show = Show(total, start=start, description=stage, say=run.say) if main else None

    def __enter__(self) -> Callable[[int, int, float, Mapping[str, float]], None]:
        if self._show is not None:
            self._show.__enter__()
        return self._report

    def __exit__(self, *details: Any) -> None:
        if self._show is not None:
            self._show.__exit__(*details)
        if self._log is not None:
            self._log.close()

    def _report(self, step: int, total: int, speed: float, figures: Mapping[str, float]) -> None:
        if self._log is None or self._show is None:
            return
        row = {"stage": float(self._stage), **figures, "images_per_s": round(speed, 1)}
        self._log.write(self._first + step, {name: row.get(name) for name in COLUMNS})
        self._show.update(step, speed, figures, self._branches())

    def _branches(self) -> list[BranchState]:
        units, rates = self._hooks.units(), self._hooks.open_rates()
        return [
            BranchState(
                name=b.name, kind=b.kind, units=units[b.name], units_total=b.units_total, open_rate=rates.get(b.name)
            )
            for b in self._hooks.spec.branches
        ]


def freeze_features(model: Vit) -> None:
    """Freeze T2T-ViT's random features (as in the Performer) and its sinusoidal positions (2101.11986)."""
    if model.spec.stem.kind == "patch":
        return
    for name, parameter in model.arrays.items():
        if name.endswith("/w") or name == "stem/pos":
            parameter.requires_grad_(False)


def finish(run: Run, program: Program) -> Program:
    """Return the result with what it was made from; the first process writes it to `folder`/program."""
    job = run.job
    program = program.with_weights({}, replace(program.spec, origin=program.spec.origin | _origin(job)))
    if unreadable := run.source.unreadable:
        run.say(
            f"warning: {len(unreadable)} images to train on cannot be read, others stood in (first: {unreadable[0]})"
        )
    if job.budgets.compresses or job.dense.spec.compressed:
        program = with_original(program, original_of(job.dense, _step(job, program.spec)))
    if job.world.main:
        save_program(program, job.folder / "program", force=True)
    return program


def _origin(job: Training) -> dict[str, str]:
    """Return what the Program tells of its training."""
    return {
        "compressed_by": f"edgevit {__version__}",
        "compressed_expected_macs": f"{job.budgets.expected:.6g}",
        "compressed_static_macs": f"{job.budgets.static:.6g}",
        "compressed_groups": job.recipe.groups,
        "compressed_seed": str(job.recipe.seed),
        "compressed_data": Path(job.data.source).name,
        "compressed_data_sha256": job.data.digest,
        **{f"compressed_{k}": v for k, v in job.notes.items()},
    }


def _step(job: Training, spec: ProgramSpec) -> str:
    """Return what the training did to the given model, in a sentence."""
    merging = f", tokens merged at {write_plan(spec)}" if spec.merges else ""
    return (
        f"trained to {job.budgets.expected:.0%} of its MACs expected and {job.budgets.static:.0%} loaded, on "
        f"{Path(job.data.source).name}{merging} (edgevit {__version__})"
    )
