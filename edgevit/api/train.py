"""Compress a model by training it on a data set; what does it is in `training.py`, which needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.program.program import Program
from edgevit.util.optional import require_torch
from edgevit.util.progress import say

if TYPE_CHECKING:
    from edgevit.api.trained import Trained


def train(
    program: Program | str | Path,
    data: str | Path,
    *,
    weights: str | Path | None = None,
    macs: float = 1.0,
    static: float | None = None,
    tokens: str | None = None,
    memory: str | None = None,
    target: str = "x86-64-onnxruntime",
    evaluation: str | Path | None = None,
    recipe: str | Path | None = None,
    new_head: bool = False,
    unlabelled: bool = False,
    seed: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
) -> Trained | None:
    """Train a model to cost less: smaller, and less for easy images. Needs torch; takes minutes to days.

    What `edgevit compress` does. Under `torchrun` every process calls this, and all but the first return None.

    Args:
        program: the model, or what `load` takes to find it.
        data: training images: a folder, .tar, .zip, .npz, TOML list, or torchvision:NAME:FOLDER.
        weights: checkpoint of a named model.
        macs: share of the MACs that is left, expected per image, above 0 to 1; gates bring it down to that.
        static: share that is left with every gate open; pruning brings it down to that (default: the recipe's part).
        tokens: where tokens merge, in training and after, as "4:60,8:60", or "search" (default: where the model does).
        memory: memory bound instead of `static`, such as "3.0MiB".
        target: whose memory bound is meant.
        evaluation: labelled images for top-1 (default: the data's val or test split, else images held out).
        recipe: TOML file of the numbers of a training.
        new_head: start a new classifier for the data's classes.
        unlabelled: use no labels; follow the given model.
        seed: of everything random (default: the recipe's).
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: on the processor.
        output: folder of the Program, its result, log and checkpoint (default: out/MODEL-compressed).
        resume: go on from the folder's checkpoint.

    Raises:
        TrainingError: the recipe, the data or the checkpoint do not allow it.
        BudgetError: a budget that cannot be met.
        ImagesError: no usable images, or labels that do not fit the model.
        OutputError: the folder holds another training, or cannot be written.
        RuntimeMissingError: torch is not installed.

    Example:
        >>> trained = edgevit.train(program, "data/", macs=0.6, recipe="short.toml", output="out/small")
        >>> trained.compressed.macs < 0.65 * trained.dense.macs
        True
        >>> edgevit.load(trained.program).spec.gated
        True
    """
    require_torch("training")
    from edgevit.api.training import CompressJob, run_compress

    job = CompressJob(
        model=program if isinstance(program, Program) else str(program),
        data=str(data),
        weights=None if weights is None else Path(weights),
        macs=macs,
        static=static,
        tokens=tokens,
        memory=memory,
        target=target,
        evaluation=None if evaluation is None else str(evaluation),
        recipe=None if recipe is None else Path(recipe),
        new_head=new_head,
        unlabelled=unlabelled,
        seed=seed,
        device=device,
        threads=threads,
        output=None if output is None else Path(output),
        resume=resume,
    )
    return run_compress(job, say=say)
