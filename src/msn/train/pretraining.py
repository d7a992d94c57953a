"""Pre-training as a task of the loop: drives a method."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from msn.config.kinds import Config
from msn.data.bad_images import BadImages, bad_images_path
from msn.data.loader import Batch, training_batches, worker_count
from msn.data.order import Order
from msn.data.prefetch import on_device
from msn.methods import Method
from msn.runtime import checkpoint, collectives
from msn.runtime.collectives import agreed
from msn.runtime.errors import RunError
from msn.runtime.log import logger
from msn.runtime.sharding import whole
from msn.runtime.wording import aligned, counted
from msn.train.build import Parts, build_parts
from msn.train.plan import facts, notes
from msn.train.probe import Probe, is_due, whole_encoder, whole_method
from msn.train.resuming import BEGINNING, resume
from msn.train.runlog import COLUMNS, PROBE_COLUMNS, RunLog
from msn.train.step import StepResult, train_step
from msn.train.trainer import run_task


def pretrain(config: Config, device: torch.device, method: type[Method] | None = None) -> None:
    """Run the pre-training of a config to its end, resuming it if it was interrupted.

    Args:
        config: of the run.
        device: of this process.
        method: a method of one's own; None takes the one that `meta.method` names.

    Raises:
        UserError, RunError, PeerLost, Interrupted: as `msn.train.trainer.run_task`.
    """
    with agreed():
        parts = build_parts(config, device, method)
    run_task(Pretraining(config, parts))


class Pretraining:
    """A method that learns from views without labels. See `msn.train.trainer.Task`."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts, self.device = config, parts, parts.device
        self.images_per_step = parts.batch.total
        self.steps_per_epoch, self.total_steps = parts.steps_per_epoch, parts.total_steps
        self.columns, self.shown = log_columns(parts.model), parts.model.SHOWN
        self.folder, self.tag = Path(config.logging.folder), config.logging.write_tag
        self.workers = worker_count(config.data.num_workers, collectives.sharing_cores())
        self.probe: Probe | None = None

    def tables(self) -> Mapping[str, Sequence[str]]:
        return {"probe": PROBE_COLUMNS}

    def resume(self) -> int:
        start = resume(self.config, self.parts, self.folder, self.tag)
        self.parts = self.parts.replicated()
        return start

    def introduction(self, start: int) -> list[str]:
        after = f"after {start:,} of {self.total_steps:,} steps" if start else BEGINNING
        said = facts(self.config, self.parts, self.device, after)
        return [aligned(said), *(f"note: {note}" for note in notes(self.config, self.parts))]

    def begin(self, log: RunLog, start: int) -> None:
        rank, self.log = collectives.rank(), log
        with agreed():
            if rank == 0 and self.config.logging.probe:
                self.probe = Probe(self.config, self.parts, num_workers=self.workers)
        own_tag = f"{self.tag}_r{rank}" if rank else self.tag  # of what each process meets alone
        self.bad_images = BadImages(
            bad_images_path(self.folder, own_tag),
            images=len(self.parts.source),
            max_bad=self.config.data.max_bad,
            start_step=start,
        )

    def batches(self, start: int) -> Iterator[Batch]:
        return batches(self.config, self.parts, start, self.workers)

    def step(self, batch: Batch, step: int) -> None:
        parts = self.parts
        self.bad_images.record(step, batch.bad)
        self.result = train_step(parts, batch.views.normalized(parts.mean, parts.std), step)

    def require_finite(self, step: int) -> None:
        require_finite(self.config, self.parts, self.result)

    def settle(self) -> None:
        self.bad_images.exchange()

    def row(self, step: int) -> dict[str, float]:
        """Read the metrics of the last step from the device; warn of a failure once an epoch."""
        parts, result = self.parts, self.result
        tensors = {"grad_norm": result.grad_norm, **parts.model.metrics(result.output)}
        fetched = torch.stack([value.double() for value in tensors.values()]).tolist()  # at once
        metrics = dict(zip(tensors, fetched, strict=True))
        epoch, iteration = divmod(step, parts.steps_per_epoch)
        # Not while an untrained encoder still looks collapsed.
        if iteration == 0 and epoch >= max(1, self.config.optimization.warmup):
            warning = parts.model.warning(metrics, parts.batch.total)
            if warning:
                logger.warning(warning)
        return {
            "lr": parts.schedules.learning_rate(step + 1),
            "wd": parts.schedules.weight_decay(step + 1),
            "bad_images": self.bad_images.count,
            **parts.model.hyperparameters(step),
            **metrics,
        }

    def end_epoch(self, step: int, epochs: int) -> None:
        if not is_due(self.config, epochs):
            return
        encoder = whole_encoder(self.config, self.parts)
        if self.probe:
            top1 = self.probe.top1(encoder)
            self.log.measured("probe", step, epochs, [top1], f"k-NN probe: {top1:.1f} %")

    def state(self, done: int) -> checkpoint.State:
        return run_state(self.config, self.parts, float(self.result.loss), done)

    def copies(self, done: int) -> list[Path]:
        """Name the numbered checkpoint if one is due after this many steps."""
        epochs, inside = divmod(done, self.steps_per_epoch)
        frequency = self.config.logging.checkpoint_freq
        early = epochs < frequency and epochs % 10 == 0
        last = epochs == self.config.optimization.epochs
        if inside or not (epochs % frequency == 0 or early or last):
            return []
        return [checkpoint.epoch_path(self.folder, self.tag, epochs)]

    def finish(self) -> None:
        logger.info(
            f"finished: {counted(self.config.optimization.epochs, 'epoch')},"
            f" {counted(self.total_steps, 'step')};"
            f" weights in {checkpoint.latest_path(self.folder, self.tag)}"
        )
        self.log.close()
        if self.config.logging.probe and self.config.logging.probe.report:
            method = whole_method(self.config, self.parts)
            if self.probe:
                self.probe.report(method, self.folder, self.tag)


def batches(config: Config, parts: Parts, start: int, workers: int = 0) -> Iterator[Batch]:
    """Load the batches of all steps from `start` on, on the device."""
    order = Order(
        length=len(parts.source),
        batch_size=parts.batch.own,
        steps_per_epoch=parts.steps_per_epoch,
        seed=parts.seed,
        rank=collectives.rank(),
        world_size=parts.batch.processes,
    )
    loaded = training_batches(
        parts.source,
        parts.views,
        order,
        start_step=start,
        stop_step=parts.total_steps,
        num_workers=workers,
    )
    return on_device(loaded, parts.device, pin_memory=config.data.pin_mem)


def run_state(config: Config, parts: Parts, loss: float, done: int) -> checkpoint.State:
    """Collect all that a run needs to resume: weights, optimizer, official keys and our own."""
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


def log_columns(method: Method) -> tuple[str, ...]:
    """List the columns of the table of steps: the loop's and the method's."""
    return method.COLUMNS or (*COLUMNS, *method.hyperparameters(0), *method.METRICS)


def require_finite(config: Config, parts: Parts, result: StepResult) -> None:
    """Stop the run if a loss or gradient norm was not finite; that step changed no weights.

    Raises:
        RunError: names the step, the likely cause and the checkpoint to go on from.
    """
    step = parts.guard.first_bad_step()
    if step is None:
        return
    what = "the gradient norm" if result.loss.isfinite() else "the loss"
    latest = checkpoint.latest_path(Path(config.logging.folder), config.logging.write_tag)
    kept = f"{latest} is the last good checkpoint" if latest.exists() else "nothing was saved yet"
    raise RunError(
        f"step {step} (epoch {step // parts.steps_per_epoch + 1}): {what} is not finite; the"
        f" likely cause is {parts.model.REMEDY}; {kept}"
    )
