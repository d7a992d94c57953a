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
from msn.data.order import Order
from msn.data.sources import Source
from msn.data.views import SampleViews, make_views
from msn.data.workers import PREFETCH, made_by_workers
from msn.runtime import keyed
from msn.runtime.errors import RunError, UserError

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
    order: Order,
    *,
    start_step: int,
    stop_step: int,
    num_workers: int,
) -> Iterator[Batch]:
    """Make the training batches of steps start_step .. stop_step - 1.

    One loader serves the whole range, so that workers neither stop nor start between epochs.
    Nothing is read for steps before `start_step`.

    In place of a bad image come the views of another, chosen by (seed, epoch, image).

    Args:
        order: of all images of the source.
        num_workers: processes that make batches; 0 makes them in this one.

    Raises:
        UserError: there is too little shared memory.
        RunError: while iterating, so many images in a row are bad that the data must be gone.
    """
    if order.length != len(source):
        raise ValueError(f"an order of {order.length} samples for {len(source)} images")
    if not spec.on_device:
        import msn.data.color  # noqa: F401 - numba once, not in each worker that is forked
    # One buffer is with the caller while each worker fills, or has filled, its share.
    slots, shared = num_workers * PREFETCH + 1, num_workers > 0
    ring = _allocate(slots, spec, order.batch_size, source.channels, shared=shared)
    batches = _Batches(source, spec, ring, order)
    return _deliver(batches, range(start_step, stop_step), num_workers)


def worker_count(wanted: int | str, processes: int = 1) -> int:
    """Compute how many loader workers a training process gets, never more than its cores.

    Args:
        wanted: a number, or "auto" for the cores that a process has, less one for itself.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // processes)
    return min(share - 1, MOST_WORKERS) if isinstance(wanted, str) else min(wanted, share)


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Report a killed loader worker in one line, whatever the main process was doing just then.

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
            " lower data.num_workers or criterion.batch_size; the same command resumes from the"
            " last save"
        ) from None


class _Filled(NamedTuple):
    """What a worker sends: the number of the buffer that it filled."""

    slot: int
    bad: tuple[BadImage, ...]


class _Batches(Dataset[_Filled | UserError]):
    """The batch of each step, as a data set indexed by (step, buffer to fill)."""

    def __init__(self, source: Source, spec: ViewSpec, ring: Views, order: Order) -> None:
        self.source = source
        self.spec = spec
        self.ring = ring
        self.order = order

    def __getitem__(self, place: tuple[int, int]) -> _Filled | UserError:
        step, slot = place
        rows = self.ring.each(itemgetter(slot)).samples()
        epoch, samples = self.order.samples(step)
        bad: list[BadImage] = []
        try:
            for out, sample in zip(rows, samples.tolist(), strict=True):
                bad += self._fill(out, epoch, sample)
        except UserError as error:
            return error
        return _Filled(slot, tuple(bad))

    def _fill(self, out: SampleViews, epoch: int, sample: int) -> list[BadImage]:
        """Write the views of a sample, or of a replacement, and return the bad images met."""
        bad: list[BadImage] = []
        for index in self._candidates(epoch, sample):
            try:
                image = self.source.read(index).image
                make_views(
                    image, self.spec, seed=self.order.seed, epoch=epoch, sample=sample, out=out
                )
            except BadImage as error:
                bad.append(BadImage(error.name, error.reason))  # without its traceback
            else:
                return bad
        raise RunError(
            f"{len(bad)} images in a row are bad: {', '.join(map(str, bad[:3]))}, ...; see whether"
            " the data is still there and readable; the same command resumes from the last save"
        )

    def _candidates(self, epoch: int, sample: int) -> Iterator[int]:
        yield sample
        generator = keyed.generator(self.order.seed, keyed.Stream.REPLACEMENT, epoch, sample)
        yield from generator.integers(len(self.source), size=REPLACEMENTS).tolist()


def _deliver(batches: _Batches, steps: range, num_workers: int) -> Iterator[Batch]:
    free = deque(range(len(batches.ring.tensors()[0])))
    # A batch never goes into a full buffer.
    places = ((step, free.popleft()) for step in steps)
    for filled in made_by_workers(batches, places, num_workers):
        yield Batch(batches.ring.each(itemgetter(filled.slot)), filled.bad)
        free.append(filled.slot)


def _allocate(slots: int, spec: ViewSpec, batch_size: int, channels: int, *, shared: bool) -> Views:
    """Allocate buffers for `slots` batches, with a leading axis of that length for each kind."""
    ring = allocate(spec, batch_size, channels, slots)
    if shared:
        _require_shared_memory(sum(views.nbytes for views in ring.tensors()))
        for views in ring.tensors():
            views.share_memory_()
    return ring


def _require_shared_memory(needed: int) -> None:
    """Refuse buffers larger than the free shared memory: they would end in a bus error."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free < needed:
        raise UserError(
            f"data.num_workers: the batches of so many workers take {needed / 2**30:.1f} GiB of"
            f" shared memory, {SHARED_MEMORY} has {free / 2**30:.1f} GiB free; use fewer workers or"
            " a smaller criterion.batch_size, or give the container more (docker: --shm-size)"
        )
