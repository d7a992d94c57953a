"""The one training loop. It knows no method and no learner: it drives a `Task`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from msn.config.kinds import RunFile
from msn.data.loader import worker_deaths
from msn.runtime import checkpoint, collectives
from msn.runtime.collectives import Ballot, agreed, of_rank_0
from msn.runtime.distributed import job_name
from msn.runtime.errors import Interrupted
from msn.runtime.files import replacing
from msn.runtime.lock import locked, require_shared
from msn.runtime.log import logger
from msn.runtime.signals import stop_on_signal
from msn.train.runlog import Columns, RunLog, StepTimer
from msn.train.saving import Saver


class Task(Protocol):
    """What is trained: pre-training by a method, or learning from labels.

    All processes call everything here, in the same order.

    Attributes:
        config: of the run.
        device: that the steps are computed on.
        images_per_step: over all processes.
        steps_per_epoch: whole batches in the images.
        total_steps: length of the run.
        columns: of the table of steps.
        shown: columns that a line on the terminal shows behind the loss.
    """

    @property
    def config(self) -> RunFile: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def images_per_step(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def shown(self) -> Sequence[str]: ...

    def tables(self) -> Mapping[str, Sequence[str]]:
        """List the columns of each table of measurements, by name; epoch and step come first."""
        ...

    def resume(self) -> int:
        """Load what the run starts from, and return the number of finished steps."""
        ...

    def introduction(self, start: int) -> list[str]:
        """Describe the run, and settings that are probably a mistake, line by line."""
        ...

    def begin(self, log: RunLog, start: int) -> None:
        """Get ready for the steps from `start` on, with the run's folder locked."""
        ...

    def batches(self, start: int) -> Iterator[Any]:
        """Load the batches of all steps from `start` on."""
        ...

    def step(self, batch: Any, step: int) -> None:
        """Take one optimizer step."""
        ...

    def require_finite(self, step: int) -> None:
        """Stop if the last step was not finite. Waits for the device."""
        ...

    def settle(self) -> None:
        """Agree over all processes on the bad images met so far, before logging or saving."""
        ...

    def row(self, step: int) -> dict[str, float]:
        """Give the values to log of the last step, other than its number and timing."""
        ...

    def end_epoch(self, step: int, epochs: int) -> None:
        """Measure what is due after this many finished epochs, and log it."""
        ...

    def state(self, done: int) -> checkpoint.State:
        """Collect all that the run needs to resume after `done` steps."""
        ...

    def copies(self, done: int) -> list[Path]:
        """Name the files, beside the latest checkpoint, that this state is also saved to."""
        ...

    def finish(self) -> None:
        """Complete the run after its last step."""
        ...


def run_task(task: Task) -> None:
    """Train to the end of a run, resuming it if it was interrupted.

    Rank 0 alone writes and speaks.

    Raises:
        UserError: something that was asked for cannot be done; nothing is overwritten.
        RunError: the loss or a gradient stopped being finite.
        PeerLost: another process could not go on.
        Interrupted: a signal asked to stop; the run is saved.
    """
    config, rank = task.config, collectives.rank()
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    with contextlib.ExitStack() as held:
        owner = ""
        with agreed():
            if rank == 0:
                checkpoint.prepare_folder(folder)
                lock = checkpoint.lock_path(folder, tag)
                owner = held.enter_context(locked(lock, job=job_name()))
        owner = of_rank_0(owner)
        with agreed():
            require_shared(checkpoint.lock_path(folder, tag), owner)
        start = task.resume()
        for text in task.introduction(start):
            logger.info(text)
        with agreed():
            if rank == 0:
                with replacing(checkpoint.config_path(folder, tag)) as path:
                    path.write_text(config.dump_yaml(), encoding="utf-8")
        log = held.enter_context(
            RunLog(
                folder,
                tag,
                columns=Columns(task.columns, task.shown, task.tables()),
                rank=rank,
                start_step=start,
                total_steps=task.total_steps,
                tensorboard=config.logging.tensorboard,
            )
        )
        task.begin(log, start)
        if start < task.total_steps:
            train(task, log, start)
        task.finish()


def train(task: Task, log: RunLog, start: int) -> None:
    """Run the training loop from step `start` to the end."""
    logging, per_epoch, total = task.config.logging, task.steps_per_epoch, task.total_steps
    timer, ballot, saver = StepTimer(), Ballot(), Saver(logging, start)
    with stop_on_signal() as stop, worker_deaths():
        for step, batch in enumerate(task.batches(start), start):
            timer.data_ready()
            task.step(batch, step)
            timer.step_done(task.images_per_step)

            done, stopping = step + 1, ballot.vote(stop.number)
            epochs_done = done // per_epoch if done % per_epoch == 0 else 0
            logs = step % per_epoch % logging.log_freq == 0
            saves = epochs_done or done % logging.checkpoint_freq_itr == 0 or stopping
            # The only waits for the device: at a log line, at a save, or where it is the host.
            if logs or saves or task.device.type == "cpu":
                task.require_finite(step)
            if logs or saves:
                task.settle()
            if logs:
                log.log({**place(step, per_epoch), **task.row(step), **timer.read()})
            with timer.aside():
                # The save comes last: what it says is done has been logged.
                if epochs_done:
                    task.end_epoch(step, epochs_done)
                if saves:
                    saver.save(task.state(done), task.copies(done))
                saver.retry()
            if stopping and done < total:
                saver.finish()
                raise Interrupted(
                    f"stopped after step {done} of {total} and saved;"
                    " the same command resumes from there",
                    stopping,
                )
        ballot.close()
        saver.finish()


def place(step: int, per_epoch: int) -> dict[str, float]:
    """Give the columns that identify a step: epoch, iteration and step."""
    epoch, iteration = divmod(step, per_epoch)
    return {"epoch": epoch + 1, "itr": iteration, "step": step}
