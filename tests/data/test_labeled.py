"""Batches of labeled images: order, labels, shares of several processes."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

from msn.data.image import ArrayImage, Image
from msn.data.labeled import (
    Batch,
    CenterCrop,
    LabeledSet,
    RandomCrop,
    Transform,
    batches_in_turn,
    shuffled_batches,
)
from msn.data.order import Order
from msn.data.sources import Source
from msn.data.views import eval_view
from msn.runtime import keyed
from tests.support.sources import opened


def digits(split: str = "train") -> Source:
    return opened({"source": "digits"}, split)


def labeled(count: int | None = None) -> LabeledSet:
    source = digits()
    labels = source.labels()
    assert labels is not None
    return LabeledSet(source, labels, np.arange(len(source))[:count])


def numbered(image: Image, epoch: int, index: int) -> np.ndarray:
    """A view that tells where it comes from."""
    return np.array([[[epoch, index % 256, index // 256]]], dtype=np.uint8)


def indices(batch: Batch) -> list[int]:
    return [int(low) + 256 * int(high) for _, low, high in batch.images.flatten(1).tolist()]


def all_indices(batches: Iterable[Batch]) -> list[int]:
    return [index for batch in batches for index in indices(batch)]


def shuffled(
    images: LabeledSet, view: Transform, start: int, stop: int, num_workers: int = 0
) -> Iterator[Batch]:
    order = Order(len(images), batch_size=8, steps_per_epoch=6, seed=3)
    return shuffled_batches(
        images, view, order, start_step=start, stop_step=stop, num_workers=num_workers
    )


def test_labels_are_those_of_the_images() -> None:
    images = labeled()
    for batch in shuffled(images, numbered, 0, 4):
        assert batch.labels.tolist() == images.labels[indices(batch)].tolist()


def test_only_chosen_images_are_seen_each_once_an_epoch() -> None:
    images = labeled()
    chosen = LabeledSet(images.source, images.labels, np.arange(100, 148))
    batches = list(shuffled(chosen, numbered, 0, 12))
    epochs = [all_indices(batches[:6]), all_indices(batches[6:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100, 148))
    assert epochs[0] != epochs[1]
    assert {int(batch.images[0, 0, 0, 0]) for batch in batches[6:]} == {1}
    for batch in batches:
        assert batch.labels.tolist() == images.labels[indices(batch)].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_gives_the_same_batches(workers: int) -> None:
    view = RandomCrop(8, (0.3, 1.0), 0.5, seed=3)
    whole = list(shuffled(labeled(50), view, 0, 9))
    rest = list(shuffled(labeled(50), view, 5, 9, num_workers=workers))
    for one, other in zip(whole[5:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_processes_share_the_batches_of_one() -> None:
    images = labeled(50)
    make = partial(shuffled_batches, images, numbered, start_step=0, stop_step=5, num_workers=0)
    alone = make(Order(50, batch_size=16, steps_per_epoch=3, seed=3))
    orders = [Order(50, 4, steps_per_epoch=3, seed=3, rank=r, world_size=4) for r in range(4)]
    shares = [make(order) for order in orders]
    for one, *parts in zip(alone, *shares, strict=True):
        assert indices(one) == all_indices(parts)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_each_image_is_measured_once_by_one_process(world_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        share = batches_in_turn(
            labeled(50),
            numbered,
            batch_size=4,
            num_workers=0,
            rank=rank,
            world_size=world_size,
        )
        seen += all_indices(share)
    assert sorted(seen) == list(range(50))


def test_crops_are_keyed_by_epoch_and_image() -> None:
    array = keyed.generator(0, keyed.Stream.DRAW).integers(256, size=(30, 40, 3), dtype=np.uint8)
    image, view = ArrayImage(array, 3), RandomCrop(16, (0.08, 1.0), 0.5, seed=1)
    assert view(image, 0, 5).shape == (16, 16, 3)
    assert np.array_equal(view(image, 0, 5), view(image, 0, 5))
    assert not np.array_equal(view(image, 0, 5), view(image, 1, 5))
    assert not np.array_equal(view(image, 0, 5), view(image, 0, 6))
    other = RandomCrop(16, (0.08, 1.0), 0.5, seed=2)
    assert not np.array_equal(view(image, 0, 5), other(image, 0, 5))


def test_nothing_but_crop_and_flip() -> None:
    """A whole crop without flip is the image: no color is changed, nothing blurred."""
    noise = keyed.generator(0, keyed.Stream.DRAW).integers(256, size=(16, 16, 3), dtype=np.uint8)
    for flip, expected in ((0.0, noise), (1.0, noise[:, ::-1])):
        whole = RandomCrop(16, (1.0, 1.0), flip, seed=1)
        for index in range(20):
            assert np.array_equal(whole(ArrayImage(noise, 3), 0, index), expected)
    left_dark = np.tile(np.arange(0, 240, 12, dtype=np.uint8)[None, :, None], (20, 1, 1))
    flipped = RandomCrop(16, (0.9, 1.0), 1.0, seed=1)(ArrayImage(left_dark, 1), 0, 0)
    assert flipped[:, 0].mean() > flipped[:, -1].mean()


def test_measured_is_the_view_for_evaluation() -> None:
    image = digits().read(0).image
    assert np.array_equal(CenterCrop(16)(image, 0, 0), eval_view(image.pixels(), 16))
