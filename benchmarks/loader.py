"""Memory of a loader process over time, with an index of a million files.

    python benchmarks/loader.py                          1,000,000 files, 100,000 samples
    python benchmarks/loader.py --files 100000 --samples 20000

The images are tiny, so that what is measured is the index and the loader. Beside it, as the
baseline, the same with the names in a Python list, which every look copies into the process that
looks: reference counts lie beside the objects. Linux only.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from msn.config.sections.msn import MSNData
from msn.data.draws import ViewSpec
from msn.data.image import EncodedImage
from msn.data.loader import training_batches
from msn.data.mapped import Arrays, Watch, cached, pack, unpack
from msn.data.order import Order
from msn.data.sources import Sample
from msn.methods.msn.model import view_kinds

DATA = MSNData(source="digits", rand_size=32, focal_size=16, focal_views=2)
SPEC = ViewSpec(view_kinds(DATA), DATA)
BATCH = 100
ROWS = 10  # of the table


class Memory(NamedTuple):
    """Of a process, in MiB: its own, and its part of all (shared pages split among the sharers)."""

    private: float
    proportional: float


class MappedNames:
    """Tiny images under a million names in a memory-mapped file, as a folder has them."""

    channels, mean, std = 3, (0.5,) * 3, (0.5,) * 3
    label_rule = "nothing"

    def __init__(self, files: int) -> None:
        self.files = files
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        self.jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
        self.index = cached(f"benchmark {files}", self._build)

    def _build(self, watch: Watch) -> Arrays:
        watch(__file__)
        texts, ends = pack(os.fsencode(name) for name in names(self.files))
        return {"names": texts, "ends": ends}

    def __len__(self) -> int:
        return self.files

    def name(self, index: int) -> str:
        return unpack(self.index["names"], self.index["ends"], index)

    def read(self, index: int) -> Sample:
        name = self.name(index)
        return Sample(EncodedImage(self.jpeg, 3, name), None, name)

    def stamp(self, index: int) -> str:
        return self.name(index)

    def labels(self) -> None:
        return None

    def classes(self) -> None:
        return None


class ListedNames(MappedNames):
    """The same with the names in a list."""

    def __init__(self, files: int) -> None:
        super().__init__(files)
        self.list = list(names(files))

    def name(self, index: int) -> str:
        return self.list[index]


def names(files: int) -> Iterator[str]:
    """File names as those of ImageNet."""
    return (f"n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG" for i in range(files))


def memory_of(pid: int) -> Memory:
    """What Linux says of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return Memory(private / 1024, kib["Pss"] / 1024)


def worker_memory(source: MappedNames, samples: int) -> list[tuple[int, Memory]]:
    """Memory of the one loader process at several numbers of samples delivered."""
    order = Order(len(source), BATCH, len(source) // BATCH, seed=0)
    batches = training_batches(
        source, SPEC, order, start_step=0, stop_step=samples // BATCH, num_workers=1
    )
    before = {child.pid for child in multiprocessing.active_children()}
    found = []
    part = max(1, samples // BATCH // ROWS)
    for row in range(1, ROWS + 1):
        for _ in islice(batches, part - (row == ROWS)):  # the worker ends with the last batch
            pass
        (worker,) = (c for c in multiprocessing.active_children() if c.pid not in before)
        assert worker.pid
        found.append((row * part * BATCH, memory_of(worker.pid)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of a loader process over time.")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        ours = worker_memory(MappedNames(options.files), options.samples)
        theirs = worker_memory(ListedNames(options.files), options.samples)
    print(f"{options.files:,} files; MiB of one loader process: private, proportional\n")
    print(f"{'samples':>10}{'mapped index':>22}{'list of names':>22}")
    for (samples, mapped), (_, listed) in zip(ours, theirs, strict=True):
        cells = (f"{m.private:12.1f}{m.proportional:10.1f}" for m in (mapped, listed))
        print(f"{samples:10,}" + "".join(cells))
    growth = [table[-1][1].private - table[0][1].private for table in (ours, theirs)]
    print(f"\nprivate memory grew by {growth[0]:.1f} MiB; with a list by {growth[1]:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
