"""Copy batches to the device, one ahead of the step that uses them."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from msn.data.batch import Views
from msn.data.loader import Batch


def on_device(
    batches: Iterator[Batch], device: torch.device, *, pin_memory: bool
) -> Iterator[Batch]:
    """Copy the views of batches to `device`, one batch ahead of the step that uses them.

    On a GPU the next batch is copied, on a stream of its own, while the current one is computed
    with. On a CPU they are passed on as they are.

    Args:
        pin_memory: copy through page-locked memory, so that the host does not wait for the device.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = batch._replace(views=_copied(batch.views, device, pin_memory=pin_memory))
            copied = copying.record_event()
        if ahead:
            yield _usable(*ahead)
        ahead = following, copied
    if ahead:
        yield _usable(*ahead)


def _copied(views: Views, device: torch.device, *, pin_memory: bool) -> Views:
    # A pinned copy is made when `pin_memory` returns: the loader may then fill its buffer again.
    # torch keeps that memory from being used again until the device has read it.
    pixels = replace(views, draws=None)
    if pin_memory:
        copies = pixels.each(lambda kind: kind.pin_memory().to(device, non_blocking=True))
    else:
        copies = pixels.each(lambda kind: kind.to(device))
    return replace(copies, draws=None if views.draws is None else views.draws.clone())


def _usable(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Make the computing stream wait for the copy of a batch, and return the batch."""
    kinds = batch.views.kinds.values()
    computing = torch.cuda.current_stream(next(iter(kinds)).device)
    computing.wait_event(copied)
    for views in kinds:
        views.record_stream(computing)  # its memory is not reused before that stream is done
    return batch
