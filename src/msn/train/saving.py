"""Save a run when it is due; a full disk is retried and does not end it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msn.config.sections.logging import RunLogging
from msn.runtime import checkpoint, collectives
from msn.runtime.errors import RunError, UserError
from msn.runtime.log import logger

RETRY_AFTER = 30.0  # seconds between attempts while the run goes on
LAST_ATTEMPTS = 12  # before a run that stops gives up
LAST_PAUSE = 5.0  # seconds between these


class Saver:
    """Saves the run from rank 0; a save that fails is said and tried again.

    Args:
        settings: where and how to save.
        start: finished steps of the run so far.
    """

    def __init__(self, settings: RunLogging, start: int) -> None:
        self._settings = settings
        self._folder, self._tag = Path(settings.folder), settings.write_tag
        latest = checkpoint.latest_path(self._folder, self._tag)
        self._latest_step = start if latest.exists() else None
        self._thread: threading.Thread | None = None
        self._unsaved: tuple[checkpoint.State, Sequence[Path]] | None = None
        self._last_attempt = 0.0

    def save(self, state: checkpoint.State, copies: Sequence[Path] = ()) -> None:
        """Save a state to `copies`, then as the latest checkpoint. Only rank 0 writes."""
        if collectives.rank() != 0:
            return
        self._wait()
        if self._settings.async_save:
            work = copied(state), copies
            self._thread = threading.Thread(target=self._write, args=work, name="saver")
            self._thread.start()
        else:
            self._write(state, copies)

    def retry(self) -> None:
        """Try again, from time to time, to save what could not be saved."""
        waited = time.monotonic() - self._last_attempt
        if self._unsaved is not None and waited > RETRY_AFTER:
            self._write(*self._unsaved)

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            RunError: it cannot be written, also after some minutes of trying.
        """
        self._wait()
        for _ in range(LAST_ATTEMPTS):
            if self._unsaved is None:
                return
            time.sleep(LAST_PAUSE)
            self._write(*self._unsaved)
        if self._unsaved is not None:
            step = self._unsaved[0]["step"]
            raise RunError(f"{self._folder}: step {step} could not be saved")

    def _wait(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self, state: checkpoint.State, copies: Sequence[Path]) -> None:
        self._last_attempt = time.monotonic()
        try:
            for path in copies:
                checkpoint.save(path, state)
            checkpoint.save_latest(
                self._folder,
                self._tag,
                state,
                before=self._latest_step,
                keep=self._settings.keep,
            )
        except UserError as error:
            logger.warning(f"step {state['step']} is not saved yet, trying again: {error}")
            held = self._unsaved is not None and self._unsaved[0] is state
            self._unsaved = (state if held else copied(state)), copies
        else:
            self._latest_step, self._unsaved = state["step"], None


def copied(value: Any) -> Any:
    """Copy a nested state, its tensors to host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value
