"""The training loader: batches of views; its whole state is one integer, the step.

A batch is a pure function of (seed, step): how many workers make it, and where a run was started,
change nothing. Views are written straight into a ring of shared buffers, allocated once: memory
neither grows nor has to be mapped again for every batch.
"""

import contextlib
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from msn.data.batch import Views, allocate
from msn.data.draws import ViewSpec
from msn.data.image import BadImage
from msn.data.order import samples_of_step
from msn.data.sources import Source
from msn.data.views import SampleViews, make_views
from msn.data.workers import PREFETCH, made_by_workers
from msn.runtime import keyed
from msn.runtime.errors import RunError, UserError
from msn.runtime.wording import counted

MOST_WORKERS = 32  # that "auto" takes: more hold more batches in memory than they gain
REPLACEMENTS = 20  # images tried in place of a bad one
SHARED_MEMORY = Path("/dev/shm")
_DIED = re.compile(r"DataLoader worker \((pid.*?)\) (?:is killed by signal|exited unexpectedly)")


class Batch(NamedTuple):
    """One batch.

    Attributes:
        views: in a buffer that is used again: valid until the next batch is asked for.
        bad: images that could not be read; the views of others stand in their places.
    """

    views: Views
    bad: tuple[BadImage, ...]


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
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The batches of steps start_step .. stop_step - 1.

    One loader serves the whole range, so that workers neither stop nor start between epochs. Each
    epoch is a new permutation of the source; what does not fill a batch is left out. Nothing is
    read for steps before `start_step`.

    In place of a bad image come the views of another, chosen by (seed, epoch, image).

    Args:
        batch_size: images per batch of this process, its share of the global batch.
        steps_per_epoch: at most len(source) // (batch_size * world_size).
        num_workers: processes that make batches; 0 makes them in this one.
        rank: which of the `world_size` equal shares of the global batch to give.
        world_size: the global batch is the same for any number of processes.

    Raises:
        UserError: there are fewer images than one batch takes, or too little shared memory.
        RunError: while iterating, so many images in a row are bad that the data must be gone.
    """
    global_batch = batch_size * world_size
    if len(source) < global_batch:
        raise UserError(
            f"criterion.batch_size is {batch_size} but the data set has only {len(source)} images"
            f" for {counted(world_size, 'process')}; lower it or add images"
        )
    if not 0 < steps_per_epoch <= len(source) // global_batch:
        raise ValueError(f"{steps_per_epoch} steps of {global_batch} from {len(source)} images")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    # One buffer is with the caller while each worker fills, or has filled, its share.
    ring = _allocate(
        num_workers * PREFETCH + 1, spec, batch_size, source.channels, shared=num_workers > 0
    )
    batches = _Batches(source, spec, ring, steps_per_epoch, seed, rank, world_size)
    return _deliver(batches, range(start_step, stop_step), num_workers)


def worker_count(wanted: int | str, processes: int = 1) -> int:
    """Workers for one of so many training processes on this machine, never more than its cores.

    Args:
        wanted: a number, or "auto" for the cores that a process has, less one for itself.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // processes)
    return min(share - 1, MOST_WORKERS) if isinstance(wanted, str) else min(wanted, share)


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Say in one line that a worker was killed, whatever the main process was doing just then.

    Raises:
        RunError: in place of what torch raises, from a signal handler, at any point.
    """
    try:
        yield
    except RuntimeError as error:
        died = _DIED.search(str(error))
        if not died:
            raise
        raise RunError(
            f"a loader worker ({died[1]}) was killed, most likely for want of memory;"
            " lower data.num_workers or criterion.batch_size; the same command goes on from the"
            " last save"
        ) from None


class _Filled(NamedTuple):
    """What a worker sends: the number of the buffer that it filled."""

    slot: int
    bad: tuple[BadImage, ...]


class _Batches(Dataset[_Filled | UserError]):
    """The batch of each step, as a data set indexed by (step, buffer to fill)."""

    def __init__(
        self,
        source: Source,
        spec: ViewSpec,
        ring: Views,
        steps_per_epoch: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.source = source
        self.spec = spec
        self.ring = ring
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, place: tuple[int, int]) -> _Filled | UserError:
        step, slot = place
        rows = self.ring.each(itemgetter(slot)).samples()
        epoch, samples = samples_of_step(
            step,
            length=len(self.source),
            batch_size=len(rows),
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        bad: list[BadImage] = []
        try:
            for out, sample in zip(rows, samples.tolist(), strict=True):
                bad += self._fill(out, epoch, sample)
        except UserError as error:
            return error
        return _Filled(slot, tuple(bad))

    def _fill(self, out: SampleViews, epoch: int, sample: int) -> list[BadImage]:
        """Write the views of a sample, or of what replaces it; the bad images met on the way."""
        bad: list[BadImage] = []
        for index in self._candidates(epoch, sample):
            try:
                image = self.source.read(index).image
                make_views(image, self.spec, seed=self.seed, epoch=epoch, sample=sample, out=out)
            except BadImage as error:
                bad.append(BadImage(error.name, error.reason))  # without its traceback
            else:
                return bad
        raise RunError(
            f"{len(bad)} images in a row are bad: {', '.join(map(str, bad[:3]))}, ...; see whether"
            " the data is still there and readable; the same command goes on from the last save"
        )

    def _candidates(self, epoch: int, sample: int) -> Iterator[int]:
        yield sample
        generator = keyed.generator(self.seed, keyed.Stream.REPLACEMENT, epoch, sample)
        yield from generator.integers(len(self.source), size=REPLACEMENTS).tolist()


def _deliver(batches: _Batches, steps: range, num_workers: int) -> Iterator[Batch]:
    free = deque(range(len(batches.ring.tensors()[0])))
    # A batch never goes into a full buffer.
    places = ((step, free.popleft()) for step in steps)
    for filled in made_by_workers(batches, places, num_workers):
        yield Batch(batches.ring.each(itemgetter(filled.slot)), filled.bad)
        free.append(filled.slot)


def _allocate(slots: int, spec: ViewSpec, batch_size: int, channels: int, *, shared: bool) -> Views:
    """Buffers for a number of batches: each kind of views with a leading axis of that length."""
    ring = allocate(spec, batch_size, channels, slots)
    if shared:
        _require_shared_memory(sum(views.nbytes for views in ring.tensors()))
        for views in ring.tensors():
            views.share_memory_()
    return ring


def _require_shared_memory(needed: int) -> None:
    """Refuse what would end in a bus error."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free < needed:
        raise UserError(
            f"data.num_workers: the batches of so many workers take {needed / 2**30:.1f} GiB of"
            f" shared memory, {SHARED_MEMORY} has {free / 2**30:.1f} GiB free; use fewer workers or"
            " a smaller criterion.batch_size, or give the container more (docker: --shm-size)"
        )
