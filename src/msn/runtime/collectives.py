"""Means, gathers and agreement over all processes, with gradients where they are needed.

A process is rank `rank()` of `world_size()`; alone, it is rank 0 of 1 and every function here is
trivial, so that callers need not ask. The default process group of torch.distributed is used.

Losses of the processes are meant to be averaged: gradients flow through `mean` as if the loss were
the mean over all processes, which is what DistributedDataParallel makes of the parameters'.
"""

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msn.runtime.errors import PeerLost, UserError

Value = TypeVar("Value")


def rank() -> int:
    """Give the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Give the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(x: Tensor) -> Tensor:
    """Average `x`, which has one shape everywhere, over the processes; with gradient."""
    return x if world_size() == 1 else _Mean.apply(x)


def log_mean_exp(x: Tensor) -> Tensor:
    """Compute log(mean(exp(x))) over the processes, even if exp(x) underflows; with gradient."""
    if world_size() == 1:
        return x
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest + mean((x - largest).exp()).log()


def gather(x: Tensor) -> Tensor:
    """Gather all processes' rows, (B, ...) -> (world_size * B, ...), by rank; without gradient."""
    if world_size() == 1:
        return x.detach()
    rows = x.detach().contiguous()
    everything = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    with _old_names():
        dist.all_gather_into_tensor(everything, rows)
    return everything


def replicated(module: nn.Module) -> nn.Module:
    """Wrap a module so that processes start from rank 0's weights and average gradients.

    The result is to be called: state and parameters are those of the module that was given.
    Gradients are exchanged while the backward pass is under way; for what has none, such as MSN's
    target, nothing is.
    """
    if world_size() == 1:
        return module
    with _old_names():
        return nn.parallel.DistributedDataParallel(
            module,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # computed from the global batch, they are equal
        )


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """Silence warnings of names that the newest torch deprecates: 2.11 lacks the new ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def not_exchanging(replica: nn.Module) -> AbstractContextManager[None]:
    """Suspend the exchange of gradients, for all but the last of the batches that are summed."""
    if isinstance(replica, nn.parallel.DistributedDataParallel):
        return replica.no_sync()
    return contextlib.nullcontext()


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


def of_rank_0(value: Value) -> Value:
    """Broadcast rank 0's value to every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Value) -> list[Value]:
    """Gather the values of all processes, by rank, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sharing_cores() -> int:
    """Count the processes, this one included, that run on cores of this one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    places = of_all((socket.gethostname(), cores))
    host, _ = places[rank()]
    return sum(other == host and not cores.isdisjoint(theirs) for other, theirs in places)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Leave this block without error on all processes, or with an error on all.

    The block must not call collectives.

    Raises:
        UserError: of this process.
        PeerLost: this process did well, but another did not.
    """
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        if world_size() == 1:
            raise
        own = error
    if world_size() == 1:
        return
    errors = of_all(str(own) if own else None)
    if own:
        raise own
    failed = next((r for r, text in enumerate(errors) if text is not None), None)
    if failed is not None:
        raise PeerLost(f"rank {failed} cannot continue: {errors[failed]}")


class Ballot:
    """Which signal asks any process to stop, known to all at the same step, without waiting.

    A vote is counted while the next step is computed, so with several processes the answer comes
    one step late. As it is counted on the CPU, the device is not waited for.
    """

    def __init__(self) -> None:
        self._count: tuple[Tensor, Any] | None = None

    def vote(self, stop: int) -> int:
        """Vote for this process's signal, or 0, and give the result of the vote before.

        Every process votes. A process that is alone gets its own vote at once.
        """
        if world_size() == 1:
            return stop
        stopping = self.close()
        if not stopping:
            wish = torch.tensor(stop)
            self._count = wish, dist.all_reduce(wish, dist.ReduceOp.MAX, async_op=True)
        return stopping

    def close(self) -> int:
        """Wait for the vote still being counted, and give its result; without one, give 0."""
        if self._count is None:
            return 0
        (wish, work), self._count = self._count, None
        work.wait()
        return int(wish)
