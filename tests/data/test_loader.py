import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msn.data import loader
from msn.data.batch import Views
from msn.data.image import ArrayImage, BadImage
from msn.data.loader import permuted, training_batches
from msn.data.sources import Sample
from msn.data.views import ViewSpec, make_views
from msn.errors import UserError

SPEC = ViewSpec(rand_size=8, focal_size=6, rand_views=2, focal_views=3)


class Images:
    """A source of random images that remembers, in a file, what was read."""

    channels, mean, std = 3, (0.5,) * 3, (0.5,) * 3

    def __init__(self, length: int, log: Path | None = None, broken: int | None = None) -> None:
        self.length, self.log, self.broken = length, log, broken

    def __len__(self) -> int:
        return self.length

    def labels(self) -> None:
        return None

    def read(self, index: int) -> Sample:
        if index == self.broken:
            raise BadImage(self.name(index), "broken")
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        pixels = np.random.default_rng(index).integers(0, 256, (11, 13, 3), dtype=np.uint8)
        return Sample(ArrayImage(pixels, 3), None, self.name(index))

    def name(self, index: int) -> str:
        return f"image {index}"

    def stamp(self, index: int) -> str:
        return self.name(index)


def batches(
    source: Images, start: int, stop: int, *, workers: int = 0, batch_size: int = 4, seed: int = 0
) -> list[Views]:
    return list(
        training_batches(
            source,
            SPEC,
            batch_size=batch_size,
            steps_per_epoch=len(source) // batch_size,
            start_step=start,
            stop_step=stop,
            seed=seed,
            num_workers=workers,
            pin_memory=True,
        )
    )


def assert_equal(ours: list[Views], theirs: list[Views]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- order


@pytest.mark.parametrize("length", range(1, 301))
def test_permutation_is_one(length: int) -> None:
    order = [permuted(i, length=length, seed=3, epoch=length) for i in range(length)]
    assert sorted(order) == list(range(length))


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_permutation_is_one_for_any_key(length: int, seed: int, epoch: int) -> None:
    order = {permuted(i, length=length, seed=seed, epoch=epoch) for i in range(length)}
    assert order == set(range(length))


def test_permutation_reaches_far() -> None:
    length = 10**8 + 7
    where = [permuted(i, length=length, seed=0, epoch=0) for i in range(500)]
    assert len(set(where)) == 500
    assert max(where) < length
    assert np.mean(where) == pytest.approx(length / 2, rel=4.5 / (3 * 500) ** 0.5)


@pytest.mark.parametrize("position", [-1, 5])
def test_position_outside_is_refused(position: int) -> None:
    with pytest.raises(IndexError):
        permuted(position, length=5, seed=0, epoch=0)


def test_permutation_differs_by_seed_and_epoch() -> None:
    orders = {
        tuple(permuted(i, length=50, seed=seed, epoch=epoch) for i in range(50))
        for seed in range(5)
        for epoch in range(20)
    }
    assert len(orders) == 100


@pytest.mark.parametrize(("length", "orders"), [(3, 6), (4, 24), (5, 120)])
def test_all_orders_are_about_equally_frequent(length: int, orders: int) -> None:
    draws = 60 * orders
    counts = Counter(
        tuple(permuted(i, length=length, seed=1, epoch=epoch) for i in range(length))
        for epoch in range(draws)
    )
    assert len(counts) == orders
    chi_square = sum((count - 60) ** 2 / 60 for count in counts.values())
    freedom = orders - 1
    assert chi_square < freedom + 4.5 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("length", [7, 16, 40])
def test_every_place_is_about_equally_frequent(length: int) -> None:
    draws = 2000
    counts = np.zeros((length, length))
    for epoch in range(draws):
        for i in range(length):
            counts[i, permuted(i, length=length, seed=1, epoch=epoch)] += 1
    expected = draws / length
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_part() -> None:
    """Neighbours in one epoch are no more likely to be neighbours in the order than any two."""
    length, close = 1000, 0
    for epoch in range(20):
        order = [permuted(i, length=length, seed=0, epoch=epoch) for i in range(length)]
        close += int((np.abs(np.diff(order)) == 1).sum())
    assert abs(close - 20 * 2) < 5 * 40**0.5


# --- batches


def test_a_batch_is_what_its_step_says() -> None:
    """Against a plain loop: epoch, position and permutation, then the views of each image."""
    source, batch_size, seed = Images(14), 4, 9
    made = batches(source, 0, 7, seed=seed)  # 3 steps an epoch
    for step, batch in enumerate(made):
        for i in range(batch_size):
            position = (step % 3) * batch_size + i
            index = permuted(position, length=14, seed=seed, epoch=step // 3)
            image = source.read(index).image.pixels()
            expected = make_views(image, SPEC, seed=seed, epoch=step // 3, sample=index)
            np.testing.assert_array_equal(batch.target[i], expected.target)
            np.testing.assert_array_equal(batch.random[:, i], expected.random)
            np.testing.assert_array_equal(batch.focal[:, i], expected.focal)


def test_shapes() -> None:
    (batch,) = batches(Images(14), 0, 1)
    assert batch.target.shape == (4, 8, 8, 3)
    assert batch.random.shape == (2, 4, 8, 8, 3)
    assert batch.focal.shape == (3, 4, 6, 6, 3)
    assert {views.dtype for views in batch} == {torch.uint8}


def test_an_epoch_reads_each_image_at_most_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches(Images(14, log), 3, 6)  # the second epoch
    read = log.read_text().split()
    assert len(read) == len(set(read)) == 12


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    assert_equal(batches(Images(14), 0, 8, workers=workers), batches(Images(14), 0, 8))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 5, 8])
def test_a_later_start_gives_the_tail(start: int, workers: int) -> None:
    unbroken = batches(Images(14), 0, 8)
    assert_equal(batches(Images(14), start, 8, workers=workers), unbroken[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_read_for_skipped_steps(tmp_path: Path, workers: int) -> None:
    log = tmp_path / "log"
    batches(Images(14, log), 4, 6, workers=workers)
    expected = [permuted(i, length=14, seed=0, epoch=1) for i in range(4, 12)]
    assert sorted(map(int, log.read_text().split())) == sorted(expected)


def test_seeds_differ() -> None:
    (a,), (b,) = batches(Images(14), 0, 1), batches(Images(14), 0, 1, seed=1)
    assert (a.target != b.target).any()


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    batches(Images(14), 0, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


# --- workers


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_it_was(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        batches(Images(8, broken=5), 0, 2, workers=workers)
    assert str(caught.value) == "image 5: broken; replace or remove it"


def test_batches_before_a_broken_image_are_delivered() -> None:
    last = permuted(7, length=8, seed=0, epoch=0)  # an image of the second step
    stream = training_batches(
        Images(8, broken=last), SPEC, batch_size=4, steps_per_epoch=2, start_step=0, stop_step=2,
        seed=0, num_workers=1, pin_memory=False,
    )  # fmt: skip
    next(stream)
    with pytest.raises(UserError, match="broken"):
        next(stream)


def test_workers_outlive_an_interrupt() -> None:
    stream = training_batches(
        Images(14), SPEC, batch_size=4, steps_per_epoch=3, start_step=0, stop_step=40,
        seed=0, num_workers=2, pin_memory=False,
    )  # fmt: skip
    received = [next(stream)]
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert child.pid
        os.kill(child.pid, signal.SIGINT)
    time.sleep(0.1)
    received += stream
    assert_equal(received, batches(Images(14), 0, 40))


def test_workers_end_when_the_batches_are_dropped() -> None:
    stream = training_batches(
        Images(14), SPEC, batch_size=4, steps_per_epoch=3, start_step=0, stop_step=10**6,
        seed=0, num_workers=2, pin_memory=False,
    )  # fmt: skip
    next(stream)
    children = multiprocessing.active_children()
    del stream
    assert len(children) == 2
    assert not any(child.is_alive() for child in children)


def test_workers_use_no_threads_of_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(cv2, "setNumThreads", numbers.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    loader._start_worker(0)
    assert numbers == [0]


# --- refusals


def test_fewer_images_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"criterion\.batch_size is 4 .* only 3 images"):
        batches(Images(3), 0, 1)


@pytest.mark.parametrize("steps", [0, 4])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps of 4 from 14"):
        training_batches(
            Images(14), SPEC, batch_size=4, steps_per_epoch=steps, start_step=0, stop_step=1,
            seed=0, num_workers=0, pin_memory=False,
        )  # fmt: skip
