"""Arrays in one memory-mapped file that all processes share.

What takes long to find out, such as the files below a folder, is kept in a cache folder together
with a stamp of all that was read for it, and found out again when one of the stamps has changed.
"""

import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from msn.runtime.errors import RunError

Arrays = Mapping[str, np.ndarray]
Layout = Mapping[str, tuple[str, tuple[int, ...], int]]  # name -> dtype, shape, offset in bytes
Watch = Callable[[str], os.stat_result]

THREADS = 16  # that wait for the file system, which may be far away
# A change this soon before the reading may have come too late for it, and yet bear an older time:
# clocks of file systems are coarse, and those of servers not quite ours.
SETTLED_NS = 2 * 10**9
_MAGIC = b"msn arrays 4\n"
_ALIGN = 64


class Mapped(Arrays):
    """Read-only arrays in a file, by name. They travel to another process as the file's path.

    Args:
        path: of the file.
        layout: dtype, shape and offset in the file of each array.

    Raises:
        OSError, ValueError, TypeError: the file cannot be mapped, or is shorter than its layout.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        with open(path, "rb") as file:
            # Without the ctime, which renaming the file changes.
            self.stamp = _stamp(os.fstat(file.fileno()))[:-1]
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._arrays = {
            name: np.ndarray(shape, dtype, buffer, offset)
            for name, (dtype, shape, offset) in layout.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[object, ...]:
        return _map_again, (self.path, self.layout, self.stamp)


def cached(name: str, build: Callable[[Watch], Arrays]) -> Arrays:
    """Give the arrays that `build` makes, from the cache folder if nothing has changed since.

    Args:
        name: what they are, such as "folder /data/images".
        build: makes them. It calls its argument, a kind of `os.stat`, with each file and folder
            before reading it: these are compared the next time. Of a folder that notices which
            names are in it, not a file overwritten in place.

    Returns:
        The arrays: mapped, or in memory where the cache folder cannot be written.
    """
    key = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    path = cache_folder() / f"{key}.arrays"
    kept = _open_kept(path)
    if kept is not None and _is_current(kept):
        return kept
    watched: dict[str, tuple[int, ...]] = {}

    def watch(watched_path: str) -> os.stat_result:
        result = os.stat(watched_path)
        watched[watched_path] = _stamp(result)
        return result

    started = time.time_ns()
    arrays = dict(build(watch))
    paths, ends = pack(os.fsencode(watched_path) for watched_path in watched)
    stamps = np.array(list(watched.values()), dtype=np.int64)
    own = {"_paths": paths, "_ends": ends, "_stamps": stamps, "_started": np.array([started])}
    try:
        return _keep(path, arrays | own)
    except OSError:
        return arrays


def cache_folder() -> Path:
    """Give the folder for things that can be made again: `msn` in the user's cache folder."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = configured if os.path.isabs(configured) else os.path.expanduser("~/.cache")
    return Path(base, "msn")


def pack(texts: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Pack many texts into one run of bytes, uint8, and the end of each, int64.

    A million Python strings would cost ten times that, and each look at one would copy its page
    into the process that looked.
    """
    parts = list(texts)
    ends = np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)), dtype=np.int64)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), ends


def unpack(texts: np.ndarray, ends: np.ndarray, index: int) -> str:
    """Decode the text at `index` >= 0 of those that `pack` packed, as file names are decoded."""
    start = int(ends[index - 1]) if index else 0
    return os.fsdecode(texts[start : int(ends[index])].tobytes())


def _stamp(result: os.stat_result) -> tuple[int, ...]:
    # The time of the last change (ctime), unlike that of writing, cannot be set back.
    return result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns


def _map_again(path: str, layout: Layout, stamp: tuple[int, ...]) -> Mapped:
    try:
        mapped = Mapped(path, layout)
        if mapped.stamp == stamp:
            return mapped
    except (OSError, ValueError, TypeError):
        pass
    raise RunError(f"{path}: was replaced while workers were starting; start again")


def _is_current(kept: Arrays) -> bool:
    stamps = kept["_stamps"]
    if (stamps[:, 2:] > kept["_started"] - SETTLED_NS).any():
        return False
    paths = [unpack(kept["_paths"], kept["_ends"], i) for i in range(len(stamps))]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda path: _stamp(os.stat(path)), paths))
    except OSError:
        return False
    return bool((np.array(found, dtype=np.int64) == stamps).all())


def _open_kept(path: Path) -> Mapped | None:
    try:
        with open(path, "rb") as file:
            if file.readline(len(_MAGIC)) != _MAGIC:
                return None
            layout = json.loads(file.readline())
        return Mapped(str(path), layout)
    except (OSError, ValueError, TypeError, AttributeError):  # missing, or damaged
        return None


def _keep(path: Path, arrays: Arrays) -> Mapped:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout, size = _lay_out(arrays)
    # A name of its own: another process may be writing the same.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_MAGIC + json.dumps(layout).encode() + b"\n")
            for name, (_, _, offset) in layout.items():
                file.seek(offset)
                file.write(np.ascontiguousarray(arrays[name]).data)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        mapped = Mapped(temporary, layout)  # this one, whoever comes to lie at `path`
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    mapped.path = str(path)
    return mapped


def _lay_out(arrays: Arrays) -> tuple[Layout, int]:
    """Lay out the arrays in the file: an offset for each, the first well behind the JSON line."""
    offset = _ALIGN * (4 + 4 * len(arrays))
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name, array in arrays.items():
        layout[name] = array.dtype.str, array.shape, offset
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    return layout, offset
