"""What a run saves, and when: never twice, never half, and without the run dying of a full disk."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from msn.config.load import Config
from msn.runtime import checkpoint, collectives
from msn.runtime.errors import RunError, UserError
from msn.runtime.sharding import whole
from msn.train.build import Parts

RETRY_AFTER = 30.0  # seconds between attempts while the run goes on
LAST_ATTEMPTS = 12  # before a run that stops gives up
LAST_PAUSE = 5.0  # seconds between these


class Saver:
    """Saves the run from rank 0; a save that fails is said and tried again.

    Args:
        start: finished steps of the run so far.
        say: shows a line to the user.
    """

    def __init__(
        self, config: Config, parts: Parts, start: int, say: Callable[[str], None]
    ) -> None:
        self._config, self._parts, self._say = config, parts, say
        self._folder, self._tag = Path(config.logging.folder), config.logging.write_tag
        latest = checkpoint.latest_path(self._folder, self._tag)
        self._latest_step = start if latest.exists() else None
        self._thread: threading.Thread | None = None
        self._unsaved: checkpoint.State | None = None
        self._last_attempt = 0.0

    def save(self, loss: float, done: int) -> None:
        """Save the state after `done` steps. Every process calls this; rank 0 writes."""
        state = run_state(self._config, self._parts, loss, done)
        if collectives.rank() != 0:
            return
        self._wait()
        if self._config.logging.async_save:
            copy = copied(state)
            self._thread = threading.Thread(target=self._write, args=(copy,), name="saver")
            self._thread.start()
        else:
            self._write(state)

    def retry(self) -> None:
        """Try again to save what could not be saved, once in a while."""
        waited = time.monotonic() - self._last_attempt
        if self._unsaved is not None and waited > RETRY_AFTER:
            self._write(self._unsaved)

    def finish(self) -> None:
        """Return when all is on disk.

        Raises:
            RunError: it cannot be written, also after some minutes of trying.
        """
        self._wait()
        for _ in range(LAST_ATTEMPTS):
            if self._unsaved is None:
                return
            time.sleep(LAST_PAUSE)
            self._write(self._unsaved)
        if self._unsaved is not None:
            raise RunError(f"{self._folder}: step {self._unsaved['step']} could not be saved")

    def _wait(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self, state: checkpoint.State) -> None:
        self._last_attempt = time.monotonic()
        try:
            if is_numbered(self._config, self._parts, state["step"]):
                checkpoint.save(
                    checkpoint.epoch_path(self._folder, self._tag, state["epoch"]), state
                )
            checkpoint.save_latest(
                self._folder,
                self._tag,
                state,
                before=self._latest_step,
                keep=self._config.logging.keep,
            )
        except UserError as error:
            self._say(f"warning: step {state['step']} is not saved yet, trying again: {error}")
            self._unsaved = state if self._unsaved is state else copied(state)
        else:
            self._latest_step, self._unsaved = state["step"], None


def is_numbered(config: Config, parts: Parts, done: int) -> bool:
    """Whether a numbered checkpoint is kept after so many steps."""
    epochs, inside = divmod(done, parts.steps_per_epoch)
    frequency = config.logging.checkpoint_freq
    early = epochs < frequency and epochs % 10 == 0
    last = epochs == config.optimization.epochs
    return inside == 0 and (epochs % frequency == 0 or early or last)


def run_state(config: Config, parts: Parts, loss: float, done: int) -> checkpoint.State:
    """All that a run needs to go on, under the official keys and some of ours."""
    return {
        **whole(parts.model.state()),
        "opt": whole(parts.optimizer.state_dict()),
        "epoch": done // parts.steps_per_epoch,
        "batch_size": parts.batch.own,
        "world_size": parts.batch.processes,
        "lr": config.optimization.lr,
        "loss": loss,
        "step": done,
        "steps_per_epoch": parts.steps_per_epoch,
        "config": config.model_dump(mode="json"),
        "mean": parts.mean.tolist(),
        "std": parts.std.tolist(),
        "version": checkpoint.VERSION,
    }


def copied(value: Any) -> Any:
    """A nested state with tensors of its own, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value
