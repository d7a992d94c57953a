"""Batches of labeled images, shuffled and augmented to learn from, or in order to measure with.

A batch is a pure function of (seed, step), as in pre-training.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from msn.config.sections.data import Augmentation, Interpolation
from msn.data.draws import ViewKind, ViewSpec
from msn.data.image import ArrayImage, BadImage, Image
from msn.data.order import Order
from msn.data.sources import Source
from msn.data.views import SampleViews, eval_view, make_views, whole_view
from msn.data.workers import made_by_workers

Transform = Callable[[Image, int, int], np.ndarray]
"""(image, epoch, index) -> uint8 (S, S, C); what is random in it is keyed by the two."""


class Bad(NamedTuple):
    """A bad image: its row in the batch, its number in the source, and why."""

    row: int
    number: int
    image: BadImage


class Batch(NamedTuple):
    """Images uint8 (B, S, S, C) and their labels int64 (B,); black ones in place of bad images."""

    images: Tensor
    labels: Tensor
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True)
class LabeledSet:
    """Images of a source with their labels, int64 of its length; only those `chosen` count.

    Labels of others than those may be -1.
    """

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
    interpolation: Interpolation = "bilinear"
    clamp: bool = False

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        view = np.empty((self.size, self.size, image.shape[2]), dtype=np.uint8)
        out = SampleViews({"image": view[None]})
        make_views(image, self._spec, seed=self.seed, epoch=epoch, sample=index, out=out)
        return view

    @cached_property
    def _spec(self) -> ViewSpec:
        only_flip = Augmentation(
            flip=self.flip,
            color_jitter=0.0,
            grayscale=0.0,
            blur=0.0,
            interpolation=self.interpolation,
        )
        return ViewSpec((ViewKind("image", 1, self.size, self.scale, self.clamp),), only_flip)


@dataclass(frozen=True)
class CenterCrop:
    """The view for measuring, see `msn.data.views.eval_view`."""

    size: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        return eval_view(image.pixels(), self.size, self.interpolation)


@dataclass(frozen=True)
class WholeImage:
    """A view in the proportions of the image, see `msn.data.views.whole_view`."""

    size: int
    multiple: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        return whole_view(image.pixels(), self.size, self.multiple, self.interpolation)


def shuffled_batches(
    images: LabeledSet,
    transform: Transform,
    order: Order,
    *,
    start_step: int,
    stop_step: int,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Make the shuffled batches of steps start_step .. stop_step - 1.

    See `msn.data.loader.training_batches`.

    Args:
        order: of the chosen images.
    """
    if order.length != len(images):
        raise ValueError(f"an order of {order.length} samples for {len(images)} images")
    batches = _Batches(images, transform, order.samples)
    steps = range(start_step, stop_step)
    return made_by_workers(batches, steps, num_workers, pin_memory=pin_memory)


def batches_in_turn(
    images: LabeledSet,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Make the batches of this rank's share of all images; each image is in one share only."""
    own = range(rank, len(images), world_size)
    order = partial(_in_turn, own=own, batch_size=batch_size)
    batches = _Batches(images, transform, order)
    steps = range(-(-len(own) // batch_size))
    return made_by_workers(batches, steps, min(num_workers, len(steps)), pin_memory=pin_memory)


def evenly_spaced(length: int, limit: int | None) -> np.ndarray:
    """Pick up to `limit` numbers below `length`, evenly: sources sorted by class stay balanced."""
    count = length if limit is None else min(limit, length)
    return np.arange(count) * length // max(count, 1)


def _in_turn(step: int, *, own: range, batch_size: int) -> tuple[int, np.ndarray]:
    return 0, np.array(own[step * batch_size : (step + 1) * batch_size], dtype=np.int64)


class _Batches(Dataset[Batch]):
    """The batch of each step, as a data set indexed by the step."""

    def __init__(
        self,
        images: LabeledSet,
        transform: Transform,
        order: Callable[[int], tuple[int, np.ndarray]],
    ) -> None:
        self.images = images
        self.transform = transform
        self.order = order

    def __getitem__(self, step: int) -> Batch:
        epoch, positions = self.order(step)
        indices = self.images.chosen[positions]
        views, bad = [], []
        for row, index in enumerate(indices.tolist()):
            try:
                view = self.transform(self.images.source.read(index).image, epoch, index)
            except BadImage as error:
                # Without its traceback.
                bad.append(Bad(row, index, BadImage(error.name, error.reason)))
                view = self._black
            views.append(view)
        labels = torch.from_numpy(self.images.labels[indices])
        return Batch(torch.from_numpy(np.stack(views)), labels, tuple(bad))

    @cached_property
    def _black(self) -> np.ndarray:
        """A black view of the shape that the transform gives, to stand in for a bad image."""
        channels = self.images.source.channels
        pixels = np.zeros((64, 64, channels), dtype=np.uint8)
        return self.transform(ArrayImage(pixels, channels), 0, 0)
