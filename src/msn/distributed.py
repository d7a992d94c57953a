"""Who am I among the processes, and what they compute together.

A process is one of `world_size()`; alone, it is rank 0 of 1 and every function here is trivial, so
that callers need not ask. Collectives use the default process group of torch.distributed.

Losses of the processes are meant to be averaged: gradients flow through `mean` as if the loss were
the mean over all processes, which is what DistributedDataParallel makes of the parameters'.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msn.errors import UserError

_SIZE_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")


def require_single_process() -> None:
    """Refuse to start as one of several processes: each would train alone and overwrite the rest.

    Raises:
        UserError: the environment says that there are other processes.
    """
    for name in _SIZE_VARIABLES:
        size = os.environ.get(name, "1")
        if size != "1":
            raise UserError(
                f"environment variable {name}={size}: this version trains in one process;"
                f" start a single process, or unset {name}"
            )


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(x: Tensor) -> Tensor:
    """Mean of `x`, of one shape everywhere, over the processes; with gradient."""
    return x if world_size() == 1 else _Mean.apply(x)


def log_mean_exp(x: Tensor) -> Tensor:
    """log of the mean over the processes of exp(x), also where exp(x) underflows; with gradient."""
    if world_size() == 1:
        return x
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest + mean((x - largest).exp()).log()


def gather(x: Tensor) -> Tensor:
    """Rows of all processes (B, ...) -> (world_size * B, ...), by rank; without gradient."""
    if world_size() == 1:
        return x.detach()
    rows = x.detach().contiguous()
    everything = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everything, rows)
    return everything


def replicated(module: nn.Module) -> nn.Module:
    """The module, such that several processes start from rank 0's weights and average gradients.

    To call: state and parameters are those of the module that was given.
    """
    return module if world_size() == 1 else nn.parallel.DistributedDataParallel(module)


class _Mean(torch.autograd.Function):
    """The mean over the processes. It is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _averaged(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _averaged(gradients[0])


def _averaged(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / world_size()
