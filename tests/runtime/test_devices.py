"""Which device a name stands for, on machines with any number of GPUs."""

import pytest
import torch

from msn.runtime.devices import choose_device
from msn.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "gpus", "local_rank", "expected"),
    [
        ("auto", 0, 3, "cpu"),
        ("auto", 1, 3, "cuda:0"),  # SLURM shows each process its own
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 1, 3, "cuda:0"),
        ("cuda", 4, 3, "cuda:3"),
        ("cuda:1", 4, 3, "cuda:1"),
        ("cpu", 4, 3, "cpu"),
    ],
)
def test_devices(
    name: str, gpus: int, local_rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(name, local_rank) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "gpus", "local_rank"),
    [
        ("cuda", 0, 0),
        ("cuda:2", 2, 0),
        ("auto", 2, 2),
        ("cuda", 2, 5),
        ("mps", 0, 0),
        ("gpu", 1, 0),
    ],
)
def test_devices_that_are_not_there(
    name: str, gpus: int, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match="--devices"):
        choose_device(name, local_rank)
