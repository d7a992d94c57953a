"""Learning from labels as a task of the loop: linear classifiers or fine-tuning.

A learner is measured on the `val` split after every epoch; beside the latest checkpoint, from which
the same command resumes exactly, that of the best epoch is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.profiler import record_function

from msn.config.kinds import EvaluationFile, FinetuneConfig, LinearConfig
from msn.data.batch import normalize
from msn.data.labeled import Bad, Batch, batches_in_turn, shuffled_batches
from msn.data.loader import worker_count
from msn.data.order import Order
from msn.evaluation import finetune as finetuning
from msn.evaluation import linear
from msn.evaluation.accuracy import Result, Score, accuracy, best_epoch
from msn.evaluation.job import Job
from msn.evaluation.plan import describe
from msn.evaluation.readable import require_readable
from msn.evaluation.resuming import Learner, best_path, resume, take_up
from msn.runtime import checkpoint, collectives
from msn.runtime.checkpoint import CLASSIFIER, Found
from msn.runtime.errors import RunError, UserError
from msn.runtime.resumable import whole_number
from msn.train.runlog import RunLog
from msn.train.trainer import run_task

COLUMNS = ("epoch", "itr", "step", "loss", "lr", "time (ms)", "images_per_s", "data_wait")
TOPS = ("top1", "top5")
TO_DEVICE = "views to device"  # for the profiler


def linear_evaluation(config: LinearConfig, device: torch.device) -> Result:
    """Run, resume or only measure the linear evaluation of a config (see `learn`)."""
    return learn(config, *linear.prepare(config, device))


def finetune(config: FinetuneConfig, device: torch.device) -> Result:
    """Run, resume or only measure the fine-tuning of a config (see `learn`)."""
    return learn(config, *finetuning.prepare(config, device))


def learn(config: EvaluationFile, job: Job, learner: Learner) -> Result:
    """Train or resume; with `meta.training: false` only measure the best checkpoint.

    Raises:
        UserError: the checkpoint is of another run, another run holds the folder, or an image
            cannot be read.
        RunError: every classifier's loss stopped being finite.
        Interrupted: a signal asked to stop; the run is saved.
    """
    task = Learning(config, job, learner)
    if not config.meta.training:
        return measure_best(task)
    run_task(task)
    return task.result


class Learning:
    """A learner and what it learns. See `msn.train.trainer.Task`.

    Attributes:
        epochs: scores of each classifier after each finished epoch.
        result: of the run, once it is finished.
    """

    columns: Sequence[str] = COLUMNS
    shown: Sequence[str] = ()
    result: Result

    def __init__(self, config: EvaluationFile, job: Job, learner: Learner) -> None:
        self.config, self.job, self.learner = config, job, learner
        self.device = job.mean.device
        self.images_per_step = job.batch_size * collectives.world_size()
        self.steps_per_epoch, self.total_steps = job.steps_per_epoch, job.total_steps
        self.normalize = partial(normalize, mean=job.mean, std=job.std)
        self.workers = worker_count(config.data.num_workers, collectives.sharing_cores())
        self.epochs: list[list[Score]] = []
        self.met: list[Bad] = []

    def tables(self) -> Mapping[str, Sequence[str]]:
        scores = (f"{name} {top}" for name in self.learner.names for top in TOPS)
        return {"accuracy": ("epoch", "step", *scores)}

    def resume(self) -> int:
        start, self.epochs = resume(self.config, self.job, self.learner)
        return start

    def introduction(self, start: int) -> list[str]:
        names, processes = self.learner.names, collectives.world_size()
        return [describe(self.config, self.job, names, self.device, processes, start)]

    def begin(self, log: RunLog, start: int) -> None:
        self.log = log

    def batches(self, start: int) -> Iterator[Batch]:
        return training_batches(self.config, self.job, start, self.workers)

    def step(self, batch: Batch, step: int) -> None:
        self.met += batch.bad
        with record_function(TO_DEVICE):
            images = self.normalize(batch.images)
            labels = batch.labels.to(images.device, non_blocking=True)
        self.losses = self.learner.train_step(images, labels, step)

    def require_finite(self, step: int) -> None:
        """Stop if no classifier has a finite loss anymore. Waits for the device.

        Raises:
            RunError: says at which step, and what to do.
        """
        if not self.losses.isfinite().any():
            raise RunError(
                f"step {step}: the loss is not finite; the likely cause is a learning rate too high"
                " for this batch size: lower optimization.lr"
            )

    def settle(self) -> None:
        require_readable(self.met, self.job.sets, self.config.data.num_workers)

    def row(self, step: int) -> dict[str, float]:
        """Give the lowest loss of all classifiers, and the learning rate of the first."""
        loss = float(self.losses.nan_to_num(nan=torch.inf).min())
        return {"loss": loss, "lr": self.learner.learning_rate(step)}

    def end_epoch(self, step: int, epochs: int) -> None:
        scores = measure(self)
        self.epochs.append(scores)
        top1, name = max((s.top1, n) for s, n in zip(scores, self.learner.names, strict=True))
        whose = f" ({name})" if len(scores) > 1 else ""
        values = [number for score in scores for number in score]
        summary = f"top-1 on val: {top1:.2f} %{whose}"
        self.log.measured("accuracy", step, epochs, values, summary)

    def state(self, done: int) -> checkpoint.State:
        job = self.job
        return {
            **self.learner.state(),
            "classifiers": [str(name) for name in self.learner.names],
            "epoch": done // job.steps_per_epoch,
            "step": done,
            "steps_per_epoch": job.steps_per_epoch,
            "batch_size": job.batch_size,
            "world_size": collectives.world_size(),
            "accuracy": [[list(score) for score in scores] for scores in self.epochs],
            "weights": job.weights,
            "class_names": list(job.class_names),
            "mean": job.mean.tolist(),
            "std": job.std.tolist(),
            "config": self.config.model_dump(mode="json"),
            "version": checkpoint.VERSION,
        }

    def copies(self, done: int) -> list[Path]:
        """Name the file of the best epoch if the epoch that just ended is the best so far."""
        ends = done % self.steps_per_epoch == 0
        best = ends and best_epoch(self.epochs) == len(self.epochs)
        return [best_path(self.config)] if best else []

    def finish(self) -> None:
        best, names = best_epoch(self.epochs), self.learner.names
        self.result = Result(
            dict(zip(names, self.epochs[-1], strict=True)),
            dict(zip(names, self.epochs[best - 1], strict=True)),
            best,
        )
        if collectives.rank() == 0:
            folder, tag = Path(self.config.logging.folder), self.config.logging.write_tag
            self.result.write(folder / f"{tag}-result.json", self.job.skipped)


def training_batches(
    config: EvaluationFile, job: Job, start: int, workers: int = 0
) -> Iterator[Batch]:
    """Load the batches of this process for all steps from `start` on."""
    order = Order(
        length=len(job.train),
        batch_size=job.batch_size,
        steps_per_epoch=job.steps_per_epoch,
        seed=config.meta.seed,
        rank=collectives.rank(),
        world_size=collectives.world_size(),
    )
    return shuffled_batches(
        job.train,
        job.train_view,
        order,
        start_step=start,
        stop_step=job.total_steps,
        num_workers=workers,
        pin_memory=config.data.pin_mem,
    )


def measure(task: Learning) -> list[Score]:
    """Measure each classifier on the `val` split as it is now. All processes call this.

    Raises:
        UserError: an image cannot be read.
    """
    batches = batches_in_turn(
        task.job.val,
        task.job.val_view,
        batch_size=task.job.batch_size,
        num_workers=task.workers,
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        pin_memory=task.config.data.pin_mem,
    )
    scores = accuracy(task.learner.logits, _watched(batches, task.met), normalize=task.normalize)
    task.settle()
    return scores


def _watched(batches: Iterator[Batch], met: list[Bad]) -> Iterator[Batch]:
    """Pass batches on, and add their bad images to `met`."""
    for batch in batches:
        met += batch.bad
        yield batch


def measure_best(task: Learning) -> Result:
    """Measure the best checkpoint of the run again, without writing anything."""
    path = best_path(task.config)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint to measure; set meta.training: true first")
    found = Found(path, checkpoint.load(path, CLASSIFIER))
    take_up(task.job, task.learner, found)
    scores = dict(zip(task.learner.names, measure(task), strict=True))
    return Result(scores, scores, whole_number(found, "epoch"))
