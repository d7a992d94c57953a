"""The loader's worker processes: how they start, end and hand over batches."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from msn.runtime.errors import UserError

PREFETCH = 2  # batches ready per worker

Item = TypeVar("Item")


def made_by_workers(
    batches: Dataset[Item | UserError],
    places: Iterable[Any],
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[Item]:
    """Yield the items of a data set at `places`, in order; each item is a whole batch.

    An item that is a UserError is raised here: raised in a worker, it would arrive with a
    traceback in its message.

    Args:
        batches: indexed by place.
        places: taken from one by one, as the workers get to do.
        num_workers: processes; 0 makes the items in this one.
        pin_memory: copy them to page-locked memory, if there is a GPU to copy them to.
    """
    loader: DataLoader[Item | UserError] = DataLoader(
        batches,
        batch_size=None,
        sampler=places,
        collate_fn=_whole,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _whole(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Set up a loader process."""
    cv2.setNumThreads(0)  # the workers are the parallelism: more threads only contend
    # Ctrl-C and SIGTERM may come to the whole group, but are for the main process, which saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(main: Any) -> None:
    """End this worker when the main process ends or sends it a SIGTERM.

    The main process is not always the parent: a fork server may stand between them.
    """
    while main.is_alive():
        came = signal.sigtimedwait({signal.SIGTERM}, 5.0)
        if came and came.si_pid == main.pid:
            break
    os._exit(0)
