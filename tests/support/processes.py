"""Run a function on several processes that are joined by gloo."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.forking import CONTEXT

TIMEOUT = timedelta(seconds=120)


def run_on(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each of so many processes, by rank."""
    if processes == 1:
        return [function(*arguments)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        members = [
            CONTEXT.Process(target=_member, args=(rank, processes, folder, function, arguments))
            for rank in range(processes)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
        assert [member.exitcode for member in members] == [0] * processes
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _member(
    rank: int, size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
