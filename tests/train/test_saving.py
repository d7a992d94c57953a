"""A save that fails is said and tried again, while the run goes on with the file before it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from msn.runtime import checkpoint
from msn.runtime.errors import RunError
from msn.train import saving
from msn.train.build import Parts
from msn.train.pretraining import run_state
from msn.train.saving import Saver, copied
from tests.support.experiments import msn_of, tiny_config, tiny_parts

Save = Callable[[int], None]


def start(folder: Path, **changes: object) -> tuple[Parts, Save, Saver]:
    """A run, what saves it after so many steps, and its saver."""
    config, parts = tiny_config(folder, **changes), tiny_parts(folder, **changes)
    saver = Saver(config.logging, 0)
    return parts, lambda done: saver.save(run_state(config, parts, 1.0, done)), saver


def step_on_disk(folder: Path) -> int:
    return int(checkpoint.load(checkpoint.latest_path(folder, "tiny"))["step"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_said_and_tried_again(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    monkeypatch.setattr(saving, "RETRY_AFTER", 0.0)
    parts, save, saver = start(tmp_path, logging__async_save=background)
    save(3)
    saver.finish()
    blocked = tmp_path / "tiny-latest.pth.tar.tmp"
    blocked.symlink_to("/dev/full")
    save(5)
    saver._wait()
    assert step_on_disk(tmp_path) == 3
    assert len(said) == 1
    assert "step 5 is not saved yet, trying again" in said[0]
    weight = msn_of(parts).prototypes.detach().clone()
    with torch.no_grad():  # the run goes on; what is saved later is the state of then
        msn_of(parts).prototypes.zero_()
    saver.retry()
    saver.finish()
    assert step_on_disk(tmp_path) == 5
    state = checkpoint.load(checkpoint.latest_path(tmp_path, "tiny"))
    assert torch.equal(state["prototypes"], weight)


def test_a_run_that_ends_unsaved_says_so(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LAST_PAUSE", 0.0)
    monkeypatch.setattr(saving, "LAST_ATTEMPTS", 2)
    _, save, saver = start(tmp_path / "gone")
    save(3)
    with pytest.raises(RunError, match="step 3 could not be saved"):
        saver.finish()
    assert len(said) == 3


def test_a_background_save_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    parts, save, saver = start(tmp_path, logging__async_save=True)
    before = copied(parts.model.state())
    save(1)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.zero_()
    saver.finish()
    state = checkpoint.load(checkpoint.latest_path(tmp_path, "tiny"))
    for name, value in before["encoder"].items():
        assert torch.equal(state["encoder"][name], value), name
