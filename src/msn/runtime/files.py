"""Write files so that a crash or a full disk leaves either the old or the new one."""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from msn.runtime.errors import UserError

REMEDIES = {
    errno.ENOENT: "create the folder",
    errno.EEXIST: "remove the file that stands in the place of its folder",
    errno.ENOTDIR: "remove the file that stands in the place of its folder",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENOLCK: "have the file system mounted with locks",
    errno.ENOSYS: "have the file system mounted with locks",
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that `path` holds either all of the old or all of the new content.

    Gives a temporary path beside it, which takes its place if the context ends without error.

    Raises:
        UserError: the file cannot be written; what was there before is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            temporary.touch()
            permissions = temporary.stat().st_mode  # as the umask has it
            yield temporary
            temporary.chmod(permissions)  # safetensors writes files for their owner only
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
            _sync(path.parent, os.O_RDONLY)  # makes the rename last through a power cut
        finally:
            temporary.unlink(missing_ok=True)


def prepare_place(path: Path, *, folder: bool = False) -> None:
    """Create the folder that a file goes into, or refuse the path before any work on its content.

    Args:
        folder: it is a folder, made as by `new_folder`.

    Raises:
        UserError: it cannot be written there, or stands in the way of what is there.
    """
    if folder:
        _require_new(path)
    with writing(path):
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a regular file to read its bytes; refuse a pipe or a device, which might never end.

    Raises:
        OSError: it cannot be opened, or is no regular file; strerror says which.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON for people and programs, completely or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder so that `path` is there completely or not at all.

    Gives a temporary folder beside it, which becomes `path` if the context ends without error.

    Raises:
        UserError: there is something at `path` already, or it cannot be written.
    """
    _require_new(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        with writing(path):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(path):
            permissions = temporary.stat().st_mode & 0o666  # as the umask has it
            for file in temporary.iterdir():
                file.chmod(permissions)
                _sync(file, os.O_RDONLY)
            os.replace(temporary, path)
            _sync(path.parent, os.O_RDONLY)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "make the folder writable")
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}), what was there before is"
            f" intact; {remedy}, or choose another place (of a run: logging.folder)"
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    # Else a pipe would wait for a writer; what is no POSIX system has no such flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_new(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; remove it or choose another place")


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
