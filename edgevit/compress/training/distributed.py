"""One process or several (`torchrun`): what training needs to know of the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn

from edgevit.errors import TrainingError

# Longer than a checkpoint takes on a slow disk, for which the others wait.
PATIENCE = timedelta(minutes=10)
LOST = ("gloo", "nccl", "connection", "peer", "timed out")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all. The global batch is the processes' batches one after another, by rank."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over processes."""
        if self.size == 1:
            return model
        # Gates of branches with no unit left take no part in a step.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def gather(self, local: Tensor) -> Tensor:
        """Return rows `[b]` of every process as `[size * b]`, by rank; derivatives flow back to their process."""
        if self.size == 1:
            return local
        return torch.cat(tuple(_AllGather.apply(local)))  # type: ignore[no-untyped-call]

    def mean(self, value: np.ndarray) -> np.ndarray:
        """Return the mean of an array over processes."""
        if self.size == 1:
            return value
        total = torch.from_numpy(np.ascontiguousarray(value)).clone()
        distributed.all_reduce(total)
        return (total / self.size).numpy().reshape(value.shape)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()


class _AllGather(torch.autograd.Function):
    """Gather with a backward pass: every process's loss may depend on every process's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, local.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        stacked = torch.stack(gradients).contiguous()
        distributed.all_reduce(stacked)
        return stacked[distributed.get_rank()]


def join() -> World:
    """Return the world `torchrun` started this process in, or one process alone.

    Raises:
        TrainingError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"the other {int(os.environ['WORLD_SIZE']) - 1} processes cannot be reached "
                f"({str(error).splitlines()[0]}); start all of them with torchrun, or unset WORLD_SIZE"
            ) from error
    return World(rank=distributed.get_rank(), size=distributed.get_world_size())


def leave() -> None:
    """Take leave of the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def lost(error: RuntimeError) -> str:
    """Return what happened if `error` is that of a process that waited for another one in vain, else an empty text."""
    text = str(error)
    known = isinstance(error, distributed.DistError) or any(word in text.lower() for word in LOST)
    return f"another process of this training is gone ({text.strip().splitlines()[0]})" if known else ""
