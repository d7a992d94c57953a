"""Runs of their own processes, killed, and what they leave behind."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.commands import start, wait_for_step

ROOT = Path(__file__).parents[2]
NO_MATTER = {"folder", "num_workers", "checkpoint_freq_itr"}


def killed_at(words: list[str], steps: int) -> None:
    """Run `msn WORDS` up to a step, then `kill -9` it."""
    with tempfile.TemporaryDirectory() as name:
        process = start(words, Path(name, "said"))
        wait_for_step(process, Path(name, "said"), steps)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Bit for bit, whatever the nesting, but for what no result depends on."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - NO_MATTER:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


class Broken(Exception):
    """What ends a run in the middle."""


def break_at(monkeypatch: pytest.MonkeyPatch, learner: type, step: int) -> None:
    """Let a learner fail at a step, before it changes anything."""
    train_step = learner.train_step  # type: ignore[attr-defined]

    def broken(self: Any, images: torch.Tensor, labels: torch.Tensor, now: int) -> torch.Tensor:
        if now == step:
            raise Broken
        losses: torch.Tensor = train_step(self, images, labels, now)
        return losses

    monkeypatch.setattr(learner, "train_step", broken)
