"""How long a folder of many images takes to open, and whether making views of them takes memory.

    python benchmarks/index.py                      1,000,000 files, views of 100,000: ten minutes
    python benchmarks/index.py --samples 1000

The files are hard links to a few JPEGs of the sizes of ImageNet.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from data import jpegs

FOLDERS = 1000
LINKS = 50_000  # to one file; ext4 allows 65,000

# Each start is a process of its own, as in life, and does what a loader's worker does. Only the
# opening is timed, not the imports.
START = """
import json, sys, time
from pathlib import Path
import cv2, torch
from msn.runtime import keyed
from msn.data.batch import allocate
from msn.data.sources.folder import Folder
from msn.config.sections.msn import MSNData
from msn.data.draws import ViewSpec
from msn.data.views import make_views
from msn.methods.msn.model import view_kinds

torch.set_num_threads(1)
cv2.setNumThreads(0)

def own_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return kib / 1024

start = time.perf_counter()
source = Folder(Path(sys.argv[1]))
seconds = time.perf_counter() - start
data = MSNData(source="digits")
samples, spec = int(sys.argv[2]), ViewSpec(view_kinds(data), data)
[out] = allocate(spec, 1, 3).samples()
memory = []
chosen = keyed.generator(0, keyed.Stream.ORDER).integers(len(source), size=samples)
for number, index in enumerate(chosen):
    image = source.read(int(index)).image
    make_views(image, spec, seed=0, epoch=0, sample=int(index), out=out)
    if (number + 1) * 10 % samples < 10:
        memory.append(own_mib())
print(json.dumps([len(source), seconds, memory]))
"""


class IndexTimes(NamedTuple):
    """Of a folder with `files` images in 1,000 sub-folders."""

    files: int
    first_s: float
    second_s: float
    memory_mib: list[float]  # of its own, after each tenth of the samples


def measure_index(files: int, samples: int) -> IndexTimes:
    """Make a tree of images, open it twice, make views of some of them, and remove it.

    The directories are in the page cache, as on any machine that has just made them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "images")
        for folder in range(FOLDERS):
            (root / f"n{folder:08}").mkdir(parents=True)
        photos = jpegs()
        for file in range(files):
            original = Path(scratch, f"{file // LINKS}.jpg")
            if file % LINKS == 0:
                original.write_bytes(photos[file // LINKS % len(photos)])
            wnid = f"n{file % FOLDERS:08}"
            os.link(original, root / wnid / f"{wnid}_{file:07}.JPEG")
        time.sleep(3)  # what has just changed would not be kept
        _, first, _ = _start(root, scratch, samples=0)
        found, second, memory = _start(root, scratch, samples=samples)
        assert found == files
        return IndexTimes(files, first, second, memory)


def _start(root: Path, cache: str, *, samples: int) -> tuple[int, float, list[float]]:
    result = subprocess.run(
        [sys.executable, "-c", START, str(root), str(samples)],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    count, seconds, memory = json.loads(result.stdout)
    return count, seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    if options.samples < 10:
        parser.error("--samples: at least 10")
    times = measure_index(options.files, options.samples)
    print(f"{times.files:,} files in {FOLDERS:,} folders")
    print(f"first start   {times.first_s:8.3f} s")
    print(f"second start  {times.second_s:8.3f} s  ({times.first_s / times.second_s:.0f}x faster)")
    memory = ", ".join(f"{mib:.1f}" for mib in times.memory_mib)
    print(f"a worker's own memory in MiB after each tenth of {options.samples:,} samples: {memory}")


if __name__ == "__main__":
    main()
