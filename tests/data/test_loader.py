import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from msn.data import loader, workers
from msn.data.batch import Views, allocate
from msn.data.image import ArrayImage, BadImage
from msn.data.loader import Batch, training_batches, worker_count, worker_deaths
from msn.data.mapped import pack, unpack
from msn.data.order import Order, permuted
from msn.data.sources import Sample
from msn.data.views import SampleViews, make_views
from msn.runtime.errors import RunError, UserError
from tests.support.views import view_spec

SPEC = view_spec(rand_size=8, focal_size=6, rand_views=2, focal_views=3)


class Images:
    """A source of random images that remembers, in a file, what was read."""

    channels, mean, std = 3, (0.5,) * 3, (0.5,) * 3
    label_rule = "nothing"

    def __init__(
        self, length: int, log: Path | None = None, broken: Collection[int] = frozenset()
    ) -> None:
        self.length, self.log, self.broken = length, log, broken

    def __len__(self) -> int:
        return self.length

    def labels(self) -> None:
        return None

    def classes(self) -> None:
        return None

    def read(self, index: int) -> Sample:
        if index in self.broken:
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


def stream(
    source: Images, start: int, stop: int, *, workers: int = 0, batch_size: int = 4, seed: int = 0
) -> Iterator[Batch]:
    order = Order(len(source), batch_size, len(source) // batch_size, seed)
    return training_batches(
        source, SPEC, order, start_step=start, stop_step=stop, num_workers=workers
    )


def views_of(source: Images, index: int, *, seed: int, epoch: int, sample: int) -> SampleViews:
    """The views of one image, as those of `sample`."""
    (out,) = allocate(SPEC, 1, 3).samples()
    image = source.read(index).image
    make_views(image, SPEC, seed=seed, epoch=epoch, sample=sample, out=out)
    return out


def kept(batches: Iterable[Batch]) -> list[Views]:
    """The views of all batches, outliving their buffers."""
    return [batch.views.each(torch.clone) for batch in batches]


def batches(source: Images, start: int, stop: int, **how: int) -> list[Views]:
    return kept(stream(source, start, stop, **how))


def assert_equal(ours: list[Views], theirs: list[Views]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


# --- batches


def test_a_batch_is_what_its_step_says() -> None:
    """Against a plain loop: epoch, position and permutation, then the views of each image."""
    source, batch_size, seed = Images(14), 4, 9
    made = batches(source, 0, 7, seed=seed)  # 3 steps an epoch
    for step, batch in enumerate(made):
        for i in range(batch_size):
            position = (step % 3) * batch_size + i
            index = int(permuted(np.array(position), length=14, seed=seed, epoch=step // 3))
            expected = views_of(source, index, seed=seed, epoch=step // 3, sample=index)
            np.testing.assert_array_equal(batch["target"][0][i], expected["target"][0])
            np.testing.assert_array_equal(batch["random"][:, i], expected["random"])
            np.testing.assert_array_equal(batch["focal"][:, i], expected["focal"])


def test_shapes() -> None:
    (batch,) = batches(Images(14), 0, 1)
    assert batch["target"][0].shape == (4, 8, 8, 3)
    assert batch["random"].shape == (2, 4, 8, 8, 3)
    assert batch["focal"].shape == (3, 4, 6, 6, 3)
    assert {views.dtype for views in batch.tensors()} == {torch.uint8}


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
    expected = permuted(np.arange(4, 12), length=14, seed=0, epoch=1)
    assert sorted(map(int, log.read_text().split())) == sorted(expected)


def test_seeds_differ() -> None:
    (a,), (b,) = batches(Images(14), 0, 1), batches(Images(14), 0, 1, seed=1)
    assert (a["target"][0] != b["target"][0]).any()


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    batches(Images(14), 0, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


# --- buffers


def test_buffers_are_used_again_but_not_before_the_next_batch_is_asked_for() -> None:
    """A slow reader, with workers far ahead of it, sees each batch whole."""
    expected = batches(Images(14), 0, 12)
    addresses = set()
    for batch, views in zip(stream(Images(14), 0, 12, workers=2), expected, strict=True):
        time.sleep(0.02)
        assert_equal([batch.views], [views])
        addresses.add(batch.views["target"][0].data_ptr())
    assert len(addresses) == 2 * workers.PREFETCH + 1


def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SHARED_MEMORY", Path("/proc"))  # where nothing is free
    with pytest.raises(UserError, match=r"data\.num_workers: .* /proc has 0\.0 GiB free"):
        batches(Images(14), 0, 1, workers=1)


# --- bad images


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_bad_images_are_replaced_alike_by_any_number_of_workers(workers: int) -> None:
    broken = {1, 5, 6, 11}
    expected = stream(Images(14, broken=broken), 0, 9)
    found = stream(Images(14, broken=broken), 0, 9, workers=workers)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal([ours.views], [theirs.views])
        assert list(map(str, ours.bad)) == list(map(str, theirs.bad))


def test_all_bad_images_are_reported_and_nothing_else_changes() -> None:
    broken = {0, 3, 8}
    whole = stream(Images(12), 0, 3)
    for batch, (views, bad) in zip(whole, stream(Images(12, broken=broken), 0, 3), strict=True):
        assert batch.bad == ()
        changed = (batch.views["target"][0] != views["target"][0]).flatten(1).any(1).sum()
        first_met = len({error.name for error in bad})
        assert (changed > 0) == bool(bad)
        assert changed <= first_met or first_met == 0
    reported = [
        error.name for batch in stream(Images(12, broken=broken), 0, 3) for error in batch.bad
    ]
    assert set(reported) == {"image 0", "image 3", "image 8"}
    assert {
        error.reason for batch in stream(Images(12, broken=broken), 0, 3) for error in batch.bad
    } == {"broken"}


def test_a_replacement_has_views_of_its_own() -> None:
    """Of one of the good images, but cropped as the bad one would have been."""
    source = Images(8, broken={2})
    made = {
        views["target"][0][i].numpy().tobytes()
        for views in batches(source, 0, 2, batch_size=4)
        for i in range(4)
    }
    good = [index for index in range(8) if index != 2]
    possible = [views_of(source, index, seed=0, epoch=0, sample=2) for index in good]
    assert len(made) == 8
    assert sum(views["target"][0].tobytes() in made for views in possible) == 1


def test_replacements_differ_between_epochs() -> None:
    source = Images(40, broken={7})
    chosen = set()
    for epoch in range(5):
        for batch in stream(source, epoch * 10, epoch * 10 + 10):
            if batch.bad:
                chosen.add(_replacement(source, batch, epoch))
    assert len(chosen) >= 3


def _replacement(source: Images, batch: Batch, epoch: int) -> int:
    """Which good image stands in the place of image 7."""
    for index in range(40):
        if index != 7:
            views = views_of(source, index, seed=0, epoch=epoch, sample=7)
            if any(
                (views["target"][0] == target.numpy()).all() for target in batch.views["target"][0]
            ):
                return index
    raise AssertionError("no image fits")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_is_gone_ends_the_run(workers: int) -> None:
    with pytest.raises(RunError) as caught:
        batches(Images(8, broken=range(8)), 0, 2, workers=workers)
    assert str(caught.value).startswith("21 images in a row are bad: image ")
    assert len(str(caught.value).splitlines()) == 1


def test_batches_before_the_source_is_gone_are_delivered() -> None:
    order = permuted(np.arange(8), length=8, seed=0, epoch=0).tolist()

    class Vanishing(Images):
        def read(self, index: int) -> Sample:
            if index == order[4]:  # the first of the second step
                self.broken = range(8)
            return super().read(index)

    received = stream(Vanishing(8), 0, 2, workers=1)
    assert next(received).bad == ()
    with pytest.raises(RunError, match="in a row are bad"):
        next(received)


# --- workers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_a_signal_to_the_whole_group(number: signal.Signals) -> None:
    received = stream(Images(14), 0, 40, workers=2)
    views = kept(islice(received, 2))  # one by each: both are ready
    children = multiprocessing.active_children()
    assert len(children) == 2
    # From elsewhere, as from a terminal or SLURM: a SIGTERM of the main process ends a worker.
    subprocess.run(
        ["kill", f"-{number.value}", *(str(child.pid) for child in children)], check=True
    )
    time.sleep(0.1)
    views += kept(received)
    assert_equal(views, batches(Images(14), 0, 40))


def test_workers_end_when_the_batches_are_dropped() -> None:
    received = stream(Images(14), 0, 10**6, workers=2)
    next(received)
    children = multiprocessing.active_children()
    del received
    assert len(children) == 2
    assert not any(child.is_alive() for child in children)


def kill_one_and_go_on(batches: Iterator[Batch]) -> None:
    next(batches)
    victim = multiprocessing.active_children()[0]
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    for _ in batches:
        pass


def test_a_killed_worker_is_one_line() -> None:
    received = stream(Images(14), 0, 10**6, workers=2)
    with (
        pytest.raises(RunError, match=r"a loader worker \(pid.* was killed") as caught,
        worker_deaths(),
    ):
        kill_one_and_go_on(received)
    assert len(str(caught.value).splitlines()) == 1


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), worker_deaths():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("wanted", "processes", "workers"),
    [
        ("auto", 1, 7),
        ("auto", 2, 3),
        ("auto", 8, 0),
        ("auto", 16, 0),
        (0, 1, 0),
        (3, 1, 3),
        (10, 1, 8),
        (10, 4, 2),
    ],
)
def test_worker_count(
    monkeypatch: pytest.MonkeyPatch, wanted: int | str, processes: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert worker_count(wanted, processes) == workers


def test_auto_stays_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(256)))
    assert worker_count("auto") == loader.MOST_WORKERS


def test_workers_use_no_threads_of_opencv(tmp_path: Path) -> None:
    class Counting(Images):
        def read(self, index: int) -> Sample:
            with (tmp_path / "threads").open("a") as file:
                file.write(f"{cv2.getNumThreads()}\n")
            return super().read(index)

    batches(Counting(14), 0, 1, workers=1)
    assert set((tmp_path / "threads").read_text().split()) == {"1"}


LEFT_OPEN = """
from tests.data.test_loader import Images, stream
received = stream(Images(14), 0, 10**6, workers=2)
next(received)
raise KeyError("its traceback holds the batches")
"""


@pytest.mark.slow
def test_a_process_that_still_holds_batches_can_end() -> None:
    command = [sys.executable, "-c", LEFT_OPEN]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("KeyError")


# --- refusals


def test_the_order_of_another_set_is_refused() -> None:
    with pytest.raises(ValueError, match="an order of 15 samples for 14 images"):
        training_batches(
            Images(14), SPEC, Order(15, 4, 3, seed=0), start_step=0, stop_step=1, num_workers=0
        )


# --- memory


class Named(Images):
    """Images that are known by long names, kept as one run of bytes."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.names, self.ends = pack(b"%064d" % i for i in range(length))

    def read(self, index: int) -> Sample:
        pixels = np.full((8, 8, 3), index % 256, dtype=np.uint8)
        return Sample(ArrayImage(pixels, 3), None, self.name(index))

    def name(self, index: int) -> str:
        return unpack(self.names, self.ends, index)


def private_mib(pid: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_a_worker_does_not_grow() -> None:
    """Though it has looked at thousands of names; in a list those would cost 7 MiB."""
    source = Named(60_000)
    earlier = multiprocessing.active_children()  # of other tests, on their way out
    received = stream(source, 0, 10**6, workers=1, batch_size=100)
    for _ in islice(received, 10):
        pass
    (worker,) = set(multiprocessing.active_children()) - set(earlier)
    assert worker.pid
    before = private_mib(worker.pid)
    for _ in islice(received, 60):
        pass
    assert private_mib(worker.pid) < before + 1.5
