"""Batches of labelled images: augmented in random order to learn from, or in turn to measure with.

A batch is a pure function of (seed, step), as in pre-training.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msn.data.draws import ViewSpec
from msn.data.image import BadImage, Image
from msn.data.loader import PREFETCH, start_worker
from msn.data.order import permuted
from msn.data.sources import Source
from msn.data.views import SampleViews, eval_view, make_views
from msn.errors import UserError

Transform = Callable[[Image, int, int], np.ndarray]
"""(image, epoch, index) -> uint8 (S, S, C); what is random in it is keyed by the two."""


class Batch(NamedTuple):
    """Images uint8 (B, S, S, C) and their labels int64 (B,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelledSet:
    """Images of a source with their labels, int64 of its length; only those `chosen` count."""

    source: Source
    labels: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class RandomCrop:
    """A random crop and flip, keyed by (seed, epoch, index): a view of pre-training."""

    size: int
    scale: tuple[float, float]
    flip: float
    seed: int

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        spec = ViewSpec(
            rand_crop_scale=self.scale,
            flip=self.flip,
            color_jitter=0.0,
            grayscale=0.0,
            blur=0.0,
        )
        view = np.empty((self.size, self.size, image.shape[2]), dtype=np.uint8)
        out = SampleViews(view, random=view[None][:0], focal=view[None][:0])
        make_views(image, spec, seed=self.seed, epoch=epoch, sample=index, out=out)
        return view


@dataclass(frozen=True)
class CentreCrop:
    """The view for measuring, see `msn.data.views.eval_view`."""

    size: int

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        return eval_view(image.pixels(), self.size)


def shuffled_batches(
    images: LabelledSet,
    transform: Transform,
    *,
    batch_size: int,
    steps_per_epoch: int,
    start_step: int,
    stop_step: int,
    seed: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of steps start_step .. stop_step - 1; each epoch is a new permutation.

    The batches of all ranks together are those that one process would make of `world_size` times
    the batch size. Further arguments as in `msn.data.loader.training_batches`.

    Raises:
        UserError: while iterating, an image cannot be read.
    """
    order = partial(
        _shuffled,
        length=len(images),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    steps = range(start_step, stop_step)
    return _load(_Batches(images, transform, order), steps, num_workers, pin_memory)


def batches_in_turn(
    images: LabelledSet,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This rank's share of all images: over all ranks each is there once, none twice.

    Raises:
        UserError: while iterating, an image cannot be read.
    """
    own = range(rank, len(images), world_size)
    order = partial(_in_turn, own=own, batch_size=batch_size)
    steps = range(-(-len(own) // batch_size))
    return _load(_Batches(images, transform, order), steps, num_workers, pin_memory)


def _shuffled(
    step: int,
    *,
    length: int,
    batch_size: int,
    steps_per_epoch: int,
    seed: int,
    rank: int,
    world_size: int,
) -> tuple[int, list[int]]:
    epoch, inside = divmod(step, steps_per_epoch)
    start = (inside * world_size + rank) * batch_size
    positions = np.arange(start, start + batch_size)
    return epoch, permuted(positions, length=length, seed=seed, epoch=epoch).tolist()


def _in_turn(step: int, *, own: range, batch_size: int) -> tuple[int, list[int]]:
    return 0, list(own[step * batch_size : (step + 1) * batch_size])


class _Batches(Dataset[Batch | UserError]):
    """The batch of each step, as a data set indexed by the step."""

    def __init__(
        self,
        images: LabelledSet,
        transform: Transform,
        order: Callable[[int], tuple[int, list[int]]],
    ) -> None:
        self.images = images
        self.transform = transform
        self.order = order

    def __getitem__(self, step: int) -> Batch | UserError:
        epoch, positions = self.order(step)
        indices = self.images.chosen[positions]
        try:
            views = [
                self.transform(self.images.source.read(index).image, epoch, index)
                for index in indices.tolist()
            ]
        except BadImage as bad:  # raised in a worker, it would arrive with a traceback
            return UserError(f"{bad}; replace or remove it")
        return Batch(
            torch.from_numpy(np.stack(views)), torch.from_numpy(self.images.labels[indices])
        )


def _load(batches: _Batches, steps: range, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    loader: DataLoader[Batch | UserError] = DataLoader(
        batches,
        batch_size=None,  # an item of the data set is a whole batch
        sampler=steps,
        collate_fn=_whole,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _whole(batch: Any) -> Any:
    return batch
