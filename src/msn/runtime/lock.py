"""One run at a time in a folder."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from msn.runtime.errors import UserError
from msn.runtime.files import writing

SHARED_WITHIN = 30.0  # seconds that a network file system may take to show a new file


@contextlib.contextmanager
def locked(path: Path, *, job: str, patience: float = 60.0) -> Iterator[str]:
    """Hold the lock file `path`; gives what is written in it. The system lets go at any death.

    POSIX record locks also hold between the nodes of a network file system.

    Args:
        job: what runs here, e.g. a SLURM job; may be empty.
        patience: seconds to wait if the same job holds it: a requeued job's former life.

    Raises:
        UserError: another run holds the lock; it is named.
    """
    own = f"process {os.getpid()} on {socket.gethostname()}" + f", {job}" * bool(job)
    with writing(path):
        descriptor = _open_locked(path, job, time.monotonic() + patience)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, own.encode(), 0)
        os.fsync(descriptor)
    try:
        yield own
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, job: str, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace")
            os.close(descriptor)
            if not (job and holder.endswith(job)) or time.monotonic() > deadline:
                raise UserError(
                    f"{path}: another run is writing to this folder ({holder or 'unknown'}); end"
                    " it, or choose another logging.folder or logging.write_tag"
                ) from None
            time.sleep(0.5)
            continue
        # The one before may have removed the file that we have just locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def require_shared(path: Path, content: str) -> None:
    """See the lock that rank 0 holds.

    Raises:
        UserError: it does not show up: the folder is not shared between the machines.
    """
    deadline = time.monotonic() + SHARED_WITHIN
    while not path.exists() or path.read_text("utf-8", "replace") != content:
        if time.monotonic() > deadline:
            raise UserError(
                f"logging.folder {path.parent}: is not shared between the machines:"
                f" {socket.gethostname()} does not see what rank 0 ({content}) writes there; give"
                " a folder on a file system that all of them mount"
            )
        time.sleep(0.1)
