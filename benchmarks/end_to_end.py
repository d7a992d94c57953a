"""Training from JPEGs, end to end: does the device wait for data?

    python benchmarks/end_to_end.py                                      ViT-S/16, 16 images a step
    python benchmarks/end_to_end.py --device cuda --images 256 --workers 15

A folder of JPEGs of ImageNet's sizes, made from scikit-learn's photographs, goes through the real
loader, copies and training step. In turns with that, the same step runs on a batch that is on the
device already: what the first takes longer is time that the device waited, or, on a CPU, that the
loader's processes took from it.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from data import jpegs
from measure import machine, wait_for, write_results
from subjects import random_views, recipe, step_parser

from msn.config.kinds import MSNConfig
from msn.data.batch import Views
from msn.data.loader import Batch, worker_count
from msn.data.workers import PREFETCH
from msn.train.build import Parts, build_parts
from msn.train.pretraining import batches
from msn.train.step import train_step


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "train", options.files)
        config = recipe(
            options.model,
            options.images,
            "data.source=folder",
            f"data.root_path={folder}",
            "data.image_folder=.",
            f"data.num_workers={options.workers}",
            f"data.augment_on={options.augment_on}",
        )
        parts = build_parts(config, device)
        rows = measured(config, parts, options)
    waiting = statistics.median(1 - bare / whole for whole, bare, _ in rows)
    whole, bare, host = (statistics.median(column) for column in zip(*rows, strict=True))
    workers = worker_count(config.data.num_workers)
    results = {
        "images/s end to end": options.images / whole,
        "images/s of the step alone": options.images / bare,
        "share of time lost to data": waiting,
        "share that the host waited": host / whole,
        "workers": workers,
    }
    print(f"\n{options.model}, {options.images} images a step; {machine(device)}\n")
    for name, value in results.items():
        print(f"{name:30}{value:10.3f}")
    if options.out:
        write_results(options, f"end_to_end {options.device} {options.model}", {"rows": results})
    return 0


def parse() -> argparse.Namespace:
    parser = step_parser("Training from JPEGs, end to end.", model="vits16", rounds=2)
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn (default 4)")
    parser.add_argument("--files", type=int, default=1024, help="JPEGs in the folder")
    parser.add_argument("--workers", default="auto", help="loader processes (default auto)")
    parser.add_argument("--augment-on", choices=("cpu", "device"), default="cpu")
    return parser.parse_args()


def write_images(folder: Path, count: int) -> None:
    files = jpegs()
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(files[number % len(files)])


def measured(
    config: MSNConfig, parts: Parts, options: argparse.Namespace
) -> list[tuple[float, float, float]]:
    """Seconds of a step end to end, of one on a batch at hand, and that the host waited for data.

    Each number is a mean over `--steps` steps in a row. What the loader had ready is used up first.
    """
    loaded, resident = batches(config, parts, 0), random_views(config, parts.device)
    ready = 1 + PREFETCH * worker_count(config.data.num_workers)
    rows = []
    for _ in range(options.rounds):
        for _ in range(ready):
            one_step(parts, next(loaded).views)
        whole, waited = timed(parts, options.steps, loaded)
        bare, _ = timed(parts, options.steps, itertools.repeat(Batch(resident, ())))
        print(f"{whole:.3f} s, on a batch at hand {bare:.3f} s, waited {waited:.3f} s", flush=True)
        rows.append((whole, bare, waited))
    return rows


def one_step(parts: Parts, views: Views) -> None:
    train_step(parts, views.normalized(parts.mean, parts.std), 0)


def timed(parts: Parts, steps: int, source: Iterator[Batch]) -> tuple[float, float]:
    """Mean seconds of a step, and of the host's wait for its batch."""
    waited = 0.0
    wait_for(parts.device)
    start = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        one_step(parts, batch.views)
    wait_for(parts.device)
    return (time.perf_counter() - start) / steps, waited / steps


if __name__ == "__main__":
    sys.exit(main())
