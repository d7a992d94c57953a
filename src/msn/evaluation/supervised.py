"""Learning from labels: the loop that linear evaluation and fine-tuning share.

The loop knows no method: it drives a learner, measures it on the `val` split after every epoch, and
keeps the latest checkpoint, from which the same command goes on exactly, and the best.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from msn.config.load import EvaluationFile
from msn.data.batch import normalise
from msn.data.labelled import Bad, Batch, batches_in_turn, shuffled_batches
from msn.data.loader import worker_count, worker_deaths
from msn.evaluation.accuracy import Result, Score, accuracy, best_epoch
from msn.evaluation.job import Job
from msn.evaluation.plan import describe
from msn.evaluation.readable import require_readable
from msn.evaluation.resuming import Learner, best_path, latest_path, resume, take_up
from msn.runtime import checkpoint, collectives
from msn.runtime.checkpoint import CLASSIFIER, Found
from msn.runtime.collectives import Ballot, agreed
from msn.runtime.distributed import job_name
from msn.runtime.errors import Interrupted, RunError, UserError
from msn.runtime.files import replacing
from msn.runtime.lock import locked
from msn.runtime.resumable import whole_number
from msn.runtime.signals import stop_on_signal
from msn.train.runlog import StepTimer, Table, csv_path

COLUMNS = ("epoch", "itr", "step", "loss", "lr", "time (ms)", "images_per_s", "data_wait")
TOPS = ("top1", "top5")


def learn(config: EvaluationFile, job: Job, learner: Learner) -> Result:
    """Train from where the run was left; with `meta.training: false` only measure its best.

    Raises:
        UserError: the checkpoint is of another run, another run holds the folder, or an image
            cannot be read.
        RunError: every classifier's loss stopped being finite.
        Interrupted: a signal asked to stop; the run is saved.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    if not config.meta.training:
        return measure_best(config, job, learner)
    chief = collectives.rank() == 0
    with contextlib.ExitStack() as held:
        with agreed():
            checkpoint.prepare_folder(folder)
            if chief:
                held.enter_context(locked(checkpoint.lock_path(folder, tag), job=job_name()))
        start, epochs = resume(config, job, learner)
        if chief:
            with replacing(checkpoint.config_path(folder, tag)) as path:
                path.write_text(config.dump_yaml(), encoding="utf-8")
            world, device = collectives.world_size(), job.mean.device
            print(describe(config, job, learner.names, device, world, start), flush=True)
        if start < job.total_steps:
            train(config, job, learner, epochs, start)
    best = best_epoch(epochs)
    result = Result(
        dict(zip(learner.names, epochs[-1], strict=True)),
        dict(zip(learner.names, epochs[best - 1], strict=True)),
        best,
    )
    if chief:
        result.write(folder / f"{tag}-result.json", job.skipped)
    return result


def train(
    config: EvaluationFile, job: Job, learner: Learner, epochs: list[list[Score]], start: int
) -> None:
    """The loop, from step `start` to the end; appends the scores of each epoch to `epochs`."""
    per_epoch, timer, ballot = job.steps_per_epoch, StepTimer(), Ballot()
    with (
        stop_on_signal() as stop,
        worker_deaths(),
        _Log(config, job, learner, start) as log,
    ):
        met: list[Bad] = []
        for step, batch in enumerate(training_batches(config, job, start), start):
            timer.data_ready()
            met += batch.bad
            images = normalise(batch.images, job.mean, job.std)
            labels = batch.labels.to(images.device, non_blocking=True)
            losses = learner.train_step(images, labels, step)
            timer.step_done(len(images) * collectives.world_size())

            done, stopping = step + 1, ballot.vote(stop.number)
            logs, ends = step % per_epoch % config.logging.log_freq == 0, done % per_epoch == 0
            saves = ends or stopping or done % config.logging.checkpoint_freq_itr == 0
            if logs or saves:  # before anything is kept of what a bad image made
                require_readable(met, job.sets, config.data.num_workers)
                require_finite(losses, step)
            if logs:
                log.step(step, losses, timer)
            with timer.aside():
                if ends:
                    epochs.append(measure(config, job, learner))
                    log.scores(step, epochs)
                    if best_epoch(epochs) == len(epochs):
                        save(config, job, learner, epochs, done, best_path(config))
                if saves:
                    save(config, job, learner, epochs, done, latest_path(config))
            if stopping and done < job.total_steps:
                raise Interrupted(
                    f"stopped after step {done} of {job.total_steps} and saved;"
                    " the same command goes on from there",
                    stopping,
                )


def training_batches(config: EvaluationFile, job: Job, start: int) -> Iterator[Batch]:
    """The batches of this process for all steps from `start` on. All processes call this."""
    return shuffled_batches(
        job.train,
        job.train_view,
        batch_size=job.batch_size,
        steps_per_epoch=job.steps_per_epoch,
        start_step=start,
        stop_step=job.total_steps,
        seed=config.meta.seed,
        num_workers=worker_count(config.data.num_workers, collectives.sharing_cores()),
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        pin_memory=config.data.pin_mem,
    )


def measure(config: EvaluationFile, job: Job, learner: Learner) -> list[Score]:
    """What each classifier scores on the `val` split as it is now. All processes call this.

    Raises:
        UserError: an image cannot be read.
    """
    met: list[Bad] = []
    batches = batches_in_turn(
        job.val,
        job.val_view,
        batch_size=job.batch_size,
        num_workers=worker_count(config.data.num_workers, collectives.sharing_cores()),
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        pin_memory=config.data.pin_mem,
    )
    scores = accuracy(
        learner.logits,
        _watched(batches, met),
        normalise=partial(normalise, mean=job.mean, std=job.std),
    )
    require_readable(met, job.sets, config.data.num_workers)
    return scores


def _watched(batches: Iterator[Batch], met: list[Bad]) -> Iterator[Batch]:
    """The batches, with their bad images added to `met`."""
    for batch in batches:
        met += batch.bad
        yield batch


def measure_best(config: EvaluationFile, job: Job, learner: Learner) -> Result:
    """Measure the best checkpoint of the run again, write nothing."""
    path = best_path(config)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint to measure; set meta.training: true first")
    found = Found(path, checkpoint.load(path, CLASSIFIER))
    take_up(job, learner, found)
    scores = dict(zip(learner.names, measure(config, job, learner), strict=True))
    return Result(scores, scores, whole_number(found, "epoch"))


def require_finite(losses: Tensor, step: int) -> None:
    """Stop if there is no classifier left whose loss is finite. Waits for the device.

    Raises:
        RunError: says at which step, and what to do.
    """
    if not losses.isfinite().any():
        raise RunError(
            f"step {step}: the loss is not finite; the likely cause is a learning rate too high for"
            " this batch size: lower optimization.lr"
        )


def save(
    config: EvaluationFile,
    job: Job,
    learner: Learner,
    epochs: list[list[Score]],
    done: int,
    path: Path,
) -> None:
    """Write a checkpoint after `done` steps, from rank 0."""
    if collectives.rank() == 0:
        state = {
            **learner.state(),
            "classifiers": [str(name) for name in learner.names],
            "epoch": done // job.steps_per_epoch,
            "step": done,
            "steps_per_epoch": job.steps_per_epoch,
            "batch_size": job.batch_size,
            "world_size": collectives.world_size(),
            "accuracy": [[list(score) for score in scores] for scores in epochs],
            "weights": job.weights,
            "class_names": list(job.class_names),
            "mean": job.mean.tolist(),
            "std": job.std.tolist(),
            "config": config.model_dump(mode="json"),
            "version": checkpoint.VERSION,
        }
        checkpoint.save(path, state)


class _Log:
    """Steps and scores of a run as two CSV files and lines on the terminal; only rank 0 writes."""

    def __init__(self, config: EvaluationFile, job: Job, learner: Learner, start: int) -> None:
        folder, tag = Path(config.logging.folder), config.logging.write_tag
        self._job, self._learner, self._chief = job, learner, collectives.rank() == 0
        self._scores = ("epoch", "step", *(f"{name} {t}" for name in learner.names for t in TOPS))
        if self._chief:
            self._steps_table = Table(csv_path(folder, tag), COLUMNS, start)
            self._scores_table = Table(folder / f"{tag}-accuracy.csv", self._scores, start)

    def step(self, step: int, losses: Tensor, timer: StepTimer) -> None:
        """Record a step by the lowest loss of all classifiers."""
        images_per_s, data_wait, ms_per_step = timer.read()
        epoch, iteration = divmod(step, self._job.steps_per_epoch)
        loss = float(losses.nan_to_num(nan=torch.inf).min())
        rate = self._learner.learning_rate(step)
        if not self._chief:
            return
        self._steps_table.append(
            {
                "epoch": epoch + 1,
                "itr": iteration,
                "step": step,
                "loss": loss,
                "lr": rate,
                "time (ms)": ms_per_step,
                "images_per_s": images_per_s,
                "data_wait": data_wait,
            }
        )
        print(
            f"epoch {epoch + 1}  step {step + 1}/{self._job.total_steps}  loss {loss:.4f}"
            f"  lr {rate:.3g}  {images_per_s:.0f} images/s  data wait {100 * data_wait:.0f} %",
            flush=True,
        )

    def scores(self, step: int, epochs: list[list[Score]]) -> None:
        """Record the scores of the last finished epoch."""
        if not self._chief:
            return
        values = (len(epochs), step, *(number for score in epochs[-1] for number in score))
        self._scores_table.append(dict(zip(self._scores, values, strict=True)))
        top1, name = max((s.top1, n) for s, n in zip(epochs[-1], self._learner.names, strict=True))
        whose = f" ({name})" if len(epochs[-1]) > 1 else ""
        print(f"epoch {len(epochs)}  top-1 on val: {top1:.2f} %{whose}", flush=True)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._chief:
            self._steps_table.close()
            self._scores_table.close()
