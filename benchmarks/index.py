"""How long a folder of many images takes to open, the first time and the next.

python benchmarks/index.py --files 1000000
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

FOLDERS = 1000
READS = 100_000

# Each start is a process of its own, as in life. Only the opening is timed, not the imports.
START = """
import json, sys, time
from pathlib import Path
from msn import keyed
from msn.data.sources.folder import Folder

def own_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return kib / 1024

start = time.perf_counter()
source = Folder(Path(sys.argv[1]))
seconds = time.perf_counter() - start
opened = own_mib()
for index in keyed.generator(0, keyed.Stream.ORDER).integers(len(source), size=int(sys.argv[2])):
    source.read(int(index))
grown = own_mib() - opened
print(json.dumps([len(source), seconds, grown]))
"""


class IndexTimes(NamedTuple):
    """Of a folder with `files` images in 1,000 sub-folders."""

    files: int
    first_s: float
    second_s: float
    grown_mib: float  # memory of its own that a process gains by 100,000 reads after the second


def measure_index(files: int) -> IndexTimes:
    """Make a tree of empty files, open it twice, and remove it.

    The directories are in the page cache, as on any machine that has just made them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "images")
        for folder in range(FOLDERS):
            (root / f"n{folder:08}").mkdir(parents=True)
        for file in range(files):
            (root / f"n{file % FOLDERS:08}" / f"n{file % FOLDERS:08}_{file:07}.JPEG").touch()
        time.sleep(3)  # what has just changed would not be kept
        _, first, _ = _start(root, scratch, reads=0)
        found, second, grown = _start(root, scratch, reads=READS)
        assert found == files
        return IndexTimes(files, first, second, grown)


def _start(root: Path, cache: str, *, reads: int) -> tuple[int, float, float]:
    result = subprocess.run(
        [sys.executable, "-c", START, str(root), str(reads)],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    count, seconds, grown = json.loads(result.stdout)
    return count, seconds, grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    times = measure_index(parser.parse_args().files)
    print(f"{times.files:,} files in {FOLDERS:,} folders")
    print(f"first start   {times.first_s:8.3f} s")
    print(f"second start  {times.second_s:8.3f} s  ({times.first_s / times.second_s:.0f}x faster)")
    print(f"own memory gained by {READS:,} reads: {times.grown_mib:.1f} MiB")


if __name__ == "__main__":
    main()
