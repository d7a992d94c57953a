"""Whole runs on damaged data, and on workers that die."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.data.bad_images import bad_images_path
from msn.runtime import checkpoint
from msn.train.pretraining import pretrain
from tests.support.experiments import tiny_config, write_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
IMAGES = 200
DAMAGED = range(7, IMAGES, 20)  # 5 %


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of which some are damaged, each in one of three ways."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "train").mkdir()
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / "train" / f"{i:03}.jpg"
        cv2.imwrite(str(path), pixels)
        if i in DAMAGED:
            content = path.read_bytes()
            path.write_bytes([content[: len(content) // 2], b"", b"no image"][i % 3])
    return folder


def on_photos(photos: Path, **changes: Any) -> dict[str, Any]:
    settings = {"source": "folder", "root_path": str(photos)}
    return {**{f"data__{key}": value for key, value in settings.items()}, **changes}


def listed(folder: Path) -> list[dict[str, str]]:
    with bad_images_path(folder, "tiny").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "tiny_r0.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_epoch_on_damaged_images_reports_exactly_those(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And ends with the same weights for any number of workers."""
    states = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        changes = on_photos(photos, data__num_workers=workers, criterion__batch_size=20)
        pretrain(tiny_config(folder, **changes), CPU)
        expected = {f"{i:03}.jpg" for i in DAMAGED}
        assert {Path(row["name"]).name for row in listed(folder)} == expected
        assert len(listed(folder)) == len(expected)
        said = re.findall(r"bad image, replaced by another: (\S+):", capsys.readouterr().out)
        assert said == [row["name"] for row in listed(folder)]
        counts = [int(row["bad_images"]) for row in run_log(folder)]
        steps = [int(row["step"]) for row in run_log(folder)]
        met = [int(row["step"]) for row in listed(folder)]
        assert counts == [sum(first <= step for first in met) for step in steps]
        states.append(checkpoint.load(checkpoint.latest_path(folder, "tiny")))
    for name, value in states[0]["encoder"].items():
        assert torch.equal(value, states[1]["encoder"][name]), name
    assert listed(tmp_path / "0") == listed(tmp_path / "2")


def test_too_many_bad_images_stop_the_run_with_a_list(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = on_photos(photos, data__max_bad=0.02, data__num_workers=1)
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", **changes)
    assert main(["pretrain", "--fname", str(config)]) == 1
    error = capsys.readouterr().err
    assert re.match(r"error: \d+ of 200 images are bad, more than data\.max_bad 0\.02", error)
    assert str(bad_images_path(tmp_path / "run", "tiny")) in error
    assert listed(tmp_path / "run")[0]["name"] in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_on_a_local_copy_is_the_same(photos: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "photos"), "tar", photos)
    changes = on_photos(photos, criterion__batch_size=20)
    pretrain(tiny_config(tmp_path / "there", **changes), CPU)
    changes |= {"data__root_path": str(tmp_path), "data__image_folder": "photos.tar"}
    changes |= {"data__scratch": str(tmp_path / "scratch"), "meta__copy_data": True}
    pretrain(tiny_config(tmp_path / "here", **changes), CPU)
    states = [
        checkpoint.load(checkpoint.latest_path(tmp_path / name, "tiny"))["encoder"]
        for name in ("there", "here")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert str(tmp_path / "scratch") in listed(tmp_path / "here")[0]["name"]


def started(config: Path) -> subprocess.Popen[str]:
    """A run that trains, with its workers up."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--fname", str(config), "data.num_workers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    while "step 13/" not in process.stdout.readline():
        assert process.poll() is None
    return process


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run in a process of its own, and its two workers."""
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", optimization__epochs=50)
    process = started(config)
    yield process, children(process.pid)
    process.kill()
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
class TestDeaths:
    def test_a_killed_worker_is_one_line(
        self, training: tuple[subprocess.Popen[str], list[int]]
    ) -> None:
        process, workers = training
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert re.match(r"error: a loader worker \(pid.*\) was killed, most likely", error)
        assert len(error.strip().splitlines()) == 1
        assert not any(map(runs, workers))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_no_worker_outlives_the_run(
        self, training: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
    ) -> None:
        process, workers = training
        process.send_signal(number)
        process.wait(timeout=60)
        assert process.returncode == (130 if number == signal.SIGTERM else -number)
        deadline = time.monotonic() + 20  # a worker looks for its parent every 5 seconds
        while any(map(runs, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(runs, workers))
