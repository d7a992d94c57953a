"""Copy data to a local disk, once for all processes of a machine."""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msn.data.mapped import THREADS
from msn.data.sources.base import EXTENSIONS, MAX_BYTES
from msn.data.tar_file import checked
from msn.runtime.errors import UserError
from msn.runtime.log import logger

if sys.version_info >= (3, 12):
    import tarfile
else:  # before 3.10.12 and 3.11.4 Python's own cannot unpack safely
    from backports import tarfile


class _File(NamedTuple):
    """A file of the source: its path below it, bytes, and time of the last change in ns."""

    path: str
    size: int
    changed: int


def stage(source: Path, scratch: Path) -> Path:
    """Copy `source` to a local disk, unless a complete copy is there, and return the copy's path.

    One process copies, the others on the machine wait for it. The copy is named after the state of
    the source, the size and time of every file in it, so that a changed source is copied again. It
    gets its name when it is complete; what an interrupted copy left is removed.

    Args:
        source: a folder, copied as it is, or a tar file, unpacked (compressed or not).
        scratch: a folder on a local disk; the copy goes into one of the user's own below it.

    Raises:
        UserError: the source cannot be read or is no tar file, a member of it would land outside,
            or the copy does not fit or cannot be written.
    """
    with _refused(source):
        folders, files = ([], [_stat(source, "")]) if source.is_file() else _tree(source)
    home = _home(scratch)
    state = hashlib.sha256(repr((str(source.resolve()), files)).encode("utf-8", "replace"))
    target = home / state.hexdigest()[:32]
    with _refused(home), _lock(home / f"{target.name}.lock"):
        if not target.exists():
            partial = home / f"{target.name}.partial"
            if partial.exists():
                shutil.rmtree(partial)
            _require_space(source, home, sum(file.size for file in files if not _is_huge(file)))
            logger.info(f"copying {source} to {target}")
            try:
                _copy(source, folders, files, partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _copy(source: Path, folders: list[str], files: list[_File], target: Path) -> None:
    target.mkdir()
    if source.is_file():
        _unpack(source, target)
        return
    for folder in folders:
        (target / folder).mkdir(parents=True, exist_ok=True)
    with _refused(source), ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(partial(_copy_file, source, target), files):
            pass


def _copy_file(source: Path, target: Path, file: _File) -> None:
    original = source / file.path
    if original.is_file() and not _is_huge(file):
        shutil.copy2(original, target / file.path)
    else:  # a link that leads nowhere, a pipe, a device: as bad an image as there
        (target / file.path).symlink_to(original.absolute())


def _is_huge(file: _File) -> bool:
    """Tell whether a file is an image too large for any source to read, perhaps a sparse file."""
    return file.size > MAX_BYTES and file.path.lower().endswith(EXTENSIONS)


def _unpack(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            # With the filter no path, link or device leads out of `target`.
            tar.extractall(target, members=checked(tar), filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: is not safe to unpack ({error}); nothing was kept") from None
    except OSError:
        raise
    except Exception as error:  # damaged files make tarfile raise errors of many kinds
        reason, *_ = str(error).splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"{archive}: is not a whole tar file ({reason.rstrip(':')}); replace it"
        ) from None


def _tree(folder: Path) -> tuple[list[str], list[_File]]:
    """List all folders and files below a folder, in order; stop at a link to a folder it is in."""

    def refuse(error: OSError) -> None:
        raise error

    folders: list[str] = []
    found: list[str] = []
    lines: dict[str, list[tuple[int, int]]] = {str(folder): []}  # device and inode of all above
    for root, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        line, own = lines.pop(root), os.stat(root)
        if (own.st_dev, own.st_ino) in line:
            below.clear()
            continue
        below.sort()
        lines |= {os.path.join(root, name): [*line, (own.st_dev, own.st_ino)] for name in below}
        folders.append(os.path.relpath(root, folder))
        found += [os.path.relpath(os.path.join(root, name), folder) for name in sorted(names)]
    with ThreadPoolExecutor(THREADS) as pool:
        return folders, list(pool.map(lambda path: _stat(folder, path), found))


def _stat(folder: Path, path: str) -> _File:
    try:
        result = os.stat(folder / path)
    except OSError:
        result = os.lstat(folder / path)  # of a link that leads nowhere
    return _File(path, result.st_size, result.st_mtime_ns)


def _home(scratch: Path) -> Path:
    """Make a folder for this user alone: in a shared one others could leave a copy of theirs."""
    home = scratch / f"msn-data-{os.getuid()}"
    with _refused(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            raise UserError(f"{home}: belongs to someone else; choose another data.scratch")
    return home


def _require_space(source: Path, home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"{source}: takes {needed / 1e9:.1f} GB, {home} has {free / 1e9:.1f} GB free; make"
            " room, choose another data.scratch, or set meta.copy_data: false"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that one process at a time can have; a process that dies releases it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: {error.strerror or error}, while copying data for"
            " meta.copy_data; check the path, or set meta.copy_data: false"
        ) from error
