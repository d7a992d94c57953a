"""A lock on a folder: one run at a time."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from msn.runtime.errors import UserError
from msn.runtime.files import writing

SHARED_WITHIN = 30.0  # seconds that a network file system may take to show a new file


@contextlib.contextmanager
def locked(path: Path, *, job: str, patience: float = 60.0) -> Iterator[str]:
    """Hold the lock file `path` during a block, and give what is written in it.

    The system releases the lock however the process ends. It holds between the nodes of a network
    file system too, and whoever reads the file does not loosen it. No process that is forked
    meanwhile holds it on.

    Args:
        job: what runs here, e.g. a SLURM job; may be empty.
        patience: seconds to wait if the same job holds it: a requeued job's former life.

    Raises:
        UserError: another run holds the lock; it is named.
    """
    own = f"process {os.getpid()} on {socket.gethostname()}" + f", {job}" * bool(job)
    # A soft lock, in place of one that the file system does not know, would outlive a kill.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        with writing(path):
            _acquire(lock, path, job, time.monotonic() + patience)
            held.callback(lock.release)
            path.write_text(own, encoding="utf-8")
            held.callback(path.unlink, missing_ok=True)
        yield own


def _acquire(lock: FileLock, path: Path, job: str, deadline: float) -> None:
    while True:
        try:
            lock.acquire()
            return
        except Timeout:
            holder = path.read_text("utf-8", "replace") if path.exists() else ""
        if not (job and holder.endswith(job)) or time.monotonic() > deadline:
            raise UserError(
                f"{path}: another run is writing to this folder ({holder or 'unknown'}); end"
                " it, or choose another logging.folder or logging.write_tag"
            )
        time.sleep(0.5)


def require_shared(path: Path, content: str) -> None:
    """Wait until this process sees the lock file that rank 0 holds.

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
