"""The order of the samples, the workers, the batches. Its whole state is two integers.

A batch is a pure function of (seed, step): how many workers make it, and where a run was started,
change nothing.
"""

import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from msn import keyed
from msn.data.batch import Views
from msn.data.image import BadImage
from msn.data.sources import Source
from msn.data.views import ViewSpec, make_views
from msn.errors import UserError

PREFETCH = 4  # batches ready per worker
ROUNDS = 8  # of the Feistel network; on the tiniest domains fewer leave a visible bias
_MASK64 = 2**64 - 1


def training_batches(
    source: Source,
    spec: ViewSpec,
    *,
    batch_size: int,
    steps_per_epoch: int,
    start_step: int,
    stop_step: int,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Views]:
    """The batches of steps start_step .. stop_step - 1.

    One loader serves the whole range, so that workers neither stop nor start between epochs. Each
    epoch is a new permutation of the source; what does not fill a batch is left out. Nothing is
    read for steps before `start_step`.

    Args:
        batch_size: images per batch of this process, its share of the global batch.
        steps_per_epoch: at most len(source) // (batch_size * world_size).
        num_workers: processes that make batches; 0 makes them in this one.
        pin_memory: put batches in page-locked memory (where there is a CUDA device).
        rank: which of the `world_size` equal shares of the global batch to give.
        world_size: the global batch is the same for any number of processes.

    Raises:
        UserError: there are fewer images than one batch takes, or, while iterating, an image cannot
            be read.
    """
    global_batch = batch_size * world_size
    if len(source) < global_batch:
        raise UserError(
            f"criterion.batch_size is {batch_size} but the data set has only {len(source)} images"
            f" for {world_size} process{'es' * (world_size > 1)}; lower it or add images"
        )
    if not 0 < steps_per_epoch <= len(source) // global_batch:
        raise ValueError(f"{steps_per_epoch} steps of {global_batch} from {len(source)} images")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    loader: DataLoader[Views | UserError] = DataLoader(
        _Batches(source, spec, batch_size, steps_per_epoch, seed, rank, world_size),
        batch_size=None,  # an item of the data set is a whole batch
        sampler=range(start_step, stop_step),
        collate_fn=_whole,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    return _raise_errors(loader)


def permuted(position: int, *, length: int, seed: int, epoch: int) -> int:
    """Where `position` goes under a permutation of range(length) keyed by (seed, epoch).

    A Feistel network permutes the smallest domain of 4**n >= length numbers; numbers outside the
    range are sent through it again until they fall inside (cycle walking), at most 4 times on
    average.

    Raises:
        IndexError: position is not in range(length).
    """
    if not 0 <= position < length:
        raise IndexError(f"position {position} of {length}")
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(seed, epoch)
    while True:
        left, right = position >> half, position & mask
        for key in keys:
            left, right = right, left ^ (_mix(key ^ right) >> (64 - half))
        position = left << half | right
        if position < length:
            return position


class _Batches(Dataset[Views | UserError]):
    """The batch of each step, as a data set indexed by the step."""

    def __init__(
        self,
        source: Source,
        spec: ViewSpec,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.source = source
        self.spec = spec
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Views | UserError:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = (step_of_epoch * self.world_size + self.rank) * self.batch_size
        samples = []
        for position in range(start, start + self.batch_size):
            index = permuted(position, length=len(self.source), seed=self.seed, epoch=epoch)
            try:
                image = self.source.read(index).image.pixels()
            except BadImage as bad:
                # Raised in a worker, it would arrive with a traceback in its message.
                return UserError(f"{bad}; replace or remove it")
            samples.append(make_views(image, self.spec, seed=self.seed, epoch=epoch, sample=index))
        target, random, focal = zip(*samples, strict=True)
        return Views(
            torch.from_numpy(np.stack(target)),
            torch.from_numpy(np.stack(random, axis=1)),
            torch.from_numpy(np.stack(focal, axis=1)),
        )


def _raise_errors(batches: DataLoader[Views | UserError]) -> Iterator[Views]:
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _whole(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism: more threads only contend
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which saves


@lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    generator = keyed.generator(seed, keyed.Stream.ORDER, epoch)
    return tuple(generator.integers(2**64, size=ROUNDS, dtype=np.uint64).tolist())


def _mix(x: int) -> int:
    """A 64-bit mix in which every input bit moves every output bit (Murmur3's finaliser)."""
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & _MASK64
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & _MASK64
    return x ^ x >> 33
