"""The training run: its parts built from a config, one training step, and the loop.

The loop knows no method: `msn.methods.base` says what it asks of one.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from msn.config.load import Config
from msn.data.bad_images import BadImages, bad_images_path
from msn.data.batch import Views
from msn.data.loader import Batch, training_batches, worker_count, worker_deaths
from msn.data.prefetch import on_device
from msn.methods import Method, Output
from msn.runtime import checkpoint, collectives
from msn.runtime.collectives import Ballot, agreed, of_rank_0
from msn.runtime.distributed import job_name
from msn.runtime.errors import Interrupted, RunError
from msn.runtime.files import replacing
from msn.runtime.keyed import Stream, seed64
from msn.runtime.lock import locked, require_shared
from msn.runtime.sharding import full
from msn.runtime.signals import stop_on_signal
from msn.runtime.wording import aligned, counted
from msn.train.build import Parts, build_parts
from msn.train.optim import set_hyperparameters, step_unless
from msn.train.plan import facts, notes
from msn.train.probe import Probe, is_due, whole_encoder
from msn.train.resuming import BEGINNING, resume
from msn.train.runlog import COLUMNS, RunLog, StepTimer
from msn.train.saving import Saver


class StepResult(NamedTuple):
    """What one training step leaves behind for the run log."""

    output: Output
    loss: Tensor
    grad_norm: Tensor


def train_step(parts: Parts, views: Views, step: int) -> StepResult:
    """One optimiser step on one batch of normalised views.

    Order as in the official code: losses at `step`, hyperparameters of the schedule's next step,
    backward, clip, AdamW, what the method does after a step. A step that is not finite, and all
    after it, leave weights and optimiser as they were.
    """
    model, optimizer, schedules = parts.model, parts.optimizer, parts.schedules
    # Stochastic depth draws from the global generators: key them, so that a resumed run agrees.
    torch.manual_seed(seed64(parts.seed, Stream.STEP, step, collectives.rank()))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.bf16):
        output = parts.replica(views, step=step)
    set_hyperparameters(
        optimizer,
        learning_rate=schedules.learning_rate(step + 1),
        weight_decay=schedules.weight_decay(step + 1),
    )
    with record_function("backward"):
        output.loss.backward()
    limit = parts.clip_grad if parts.clip_grad is not None else torch.inf
    with record_function("gradient norm"):
        grad_norm = full(torch.nn.utils.clip_grad_norm_(model.clipped(), limit))
    loss = collectives.mean(output.loss.detach())
    with record_function("optimiser"):
        step_unless(optimizer, parts.guard.update(step, loss, grad_norm))
    with record_function("after the step"):
        model.after_step(step)
    return StepResult(output, loss, grad_norm)


def pretrain(config: Config, device: torch.device, method: type[Method] | None = None) -> None:
    """Run the experiment of a config to its end, or on from where it was interrupted.

    One process of several does its share; rank 0 alone writes and speaks.

    Args:
        config: of the run.
        device: of this process.
        method: a method of one's own; None takes the one that `meta.method` names.

    Raises:
        UserError: something that was asked for cannot be done; nothing is overwritten.
        RunError: the loss or a gradient stopped being finite.
        PeerLost: another process could not go on.
        Interrupted: a signal asked to stop; the run is saved.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    chief = collectives.rank() == 0
    with agreed():
        parts = build_parts(config, device, method)
    with contextlib.ExitStack() as held:
        owner = ""
        with agreed():
            if chief:
                checkpoint.prepare_folder(folder)
                lock = checkpoint.lock_path(folder, tag)
                owner = held.enter_context(locked(lock, job=job_name()))
        owner = of_rank_0(owner)
        with agreed():
            require_shared(checkpoint.lock_path(folder, tag), owner)
        start = resume(config, parts, folder, tag)
        if chief:
            introduce(config, parts, start)
        parts = parts.replicated()
        workers = worker_count(config.data.num_workers, collectives.sharing_cores())
        with agreed():
            if chief:
                with replacing(checkpoint.config_path(folder, tag)) as path:
                    path.write_text(config.dump_yaml(), encoding="utf-8")
            wanted = chief and config.logging.probe
            probe = Probe(config, parts, num_workers=workers) if wanted else None
        run(config, parts, probe, start)


def introduce(config: Config, parts: Parts, start: int) -> None:
    """Say what the run is, and what of it is probably not meant."""
    after = f"after {start:,} of {parts.total_steps:,} steps" if start else BEGINNING
    print(aligned(facts(config, parts, parts.device, after)))
    for note in notes(config, parts):
        print(f"note: {note}", flush=True)


def run(config: Config, parts: Parts, probe: Probe | None, start: int) -> None:
    """The run from step `start` on, with its log and its last words."""
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    rank = collectives.rank()
    own_tag = f"{tag}_r{rank}" if rank else tag  # of what each process meets alone
    with RunLog(
        folder,
        tag,
        columns=log_columns(parts.model),
        shown=parts.model.SHOWN,
        rank=rank,
        start_step=start,
        total_steps=parts.total_steps,
        tensorboard=config.logging.tensorboard,
    ) as log:
        bad_images = BadImages(
            bad_images_path(folder, own_tag),
            images=len(parts.source),
            max_bad=config.data.max_bad,
            start_step=start,
            say=log.say,
        )
        if start < parts.total_steps:
            train(config, parts, log, bad_images, probe, start)
        log.say(
            f"finished: {counted(config.optimization.epochs, 'epoch')},"
            f" {counted(parts.total_steps, 'step')};"
            f" weights in {checkpoint.latest_path(folder, tag)}"
        )
    if config.logging.probe and config.logging.probe.report:
        encoder = whole_encoder(config, parts)
        if probe:
            probe.report(encoder, folder, tag)


def train(
    config: Config,
    parts: Parts,
    log: RunLog,
    bad_images: BadImages,
    probe: Probe | None,
    start: int,
) -> None:
    """The loop, from step `start` to the end."""
    logging, per_epoch = config.logging, parts.steps_per_epoch
    timer, ballot = StepTimer(), Ballot()
    saver = Saver(config, parts, start, log.say)
    with stop_on_signal() as stop, worker_deaths():
        for step, (views, bad) in enumerate(batches(config, parts, start), start):
            timer.data_ready()
            bad_images.record(step, bad)
            result = train_step(parts, views.normalized(parts.mean, parts.std), step)
            timer.step_done(parts.batch.total)

            done, stopping = step + 1, ballot.vote(stop.number)
            epochs_done = done // per_epoch if done % per_epoch == 0 else 0
            logs = step % per_epoch % logging.log_freq == 0
            saves = epochs_done or done % logging.checkpoint_freq_itr == 0 or stopping
            # The only waits for the device: at a log line, at a save, or where it is the host.
            if logs or saves or parts.device.type == "cpu":
                require_finite(config, parts, result)
            if logs:
                bad_images.exchange()
                log_step(config, parts, log, timer, result, step, bad_images.count)
            with timer.aside():
                # The save comes last: what it says is done has been logged.
                if epochs_done and is_due(config, epochs_done):
                    encoder = whole_encoder(config, parts)
                    if probe:
                        log.probe(step, epochs_done, probe.top1(encoder))
                if saves:
                    saver.save(float(result.loss), done)
                saver.retry()
            if stopping and done < parts.total_steps:
                saver.finish()
                raise Interrupted(
                    f"stopped after step {done} of {parts.total_steps} and saved;"
                    " the same command goes on from there",
                    stopping,
                )
        ballot.close()
        saver.finish()


def batches(config: Config, parts: Parts, start: int) -> Iterator[Batch]:
    """The batches of all steps from `start` on, on the device. All processes call this."""
    loaded = training_batches(
        parts.source,
        parts.views,
        batch_size=parts.batch.own,
        steps_per_epoch=parts.steps_per_epoch,
        start_step=start,
        stop_step=parts.total_steps,
        seed=parts.seed,
        num_workers=worker_count(config.data.num_workers, collectives.sharing_cores()),
        rank=collectives.rank(),
        world_size=parts.batch.processes,
    )
    return on_device(loaded, parts.device, pin_memory=config.data.pin_mem)


def log_columns(method: Method) -> tuple[str, ...]:
    """List the columns of the table of steps: the loop's, and those of the method."""
    return method.COLUMNS or (*COLUMNS, *method.hyperparameters(0), *method.METRICS)


def log_step(
    config: Config,
    parts: Parts,
    log: RunLog,
    timer: StepTimer,
    result: StepResult,
    step: int,
    bad_images: int,
) -> None:
    """Read the metrics of a step from the device, write one row, warn of a collapse."""
    tensors = {"grad_norm": result.grad_norm, **parts.model.metrics(result.output)}
    fetched = torch.stack([value.double() for value in tensors.values()]).tolist()  # at once
    metrics = dict(zip(tensors, fetched, strict=True))
    images_per_s, data_wait, ms_per_step = timer.read()
    epoch, iteration = divmod(step, parts.steps_per_epoch)
    log.log(
        {
            "epoch": epoch + 1,
            "itr": iteration,
            "time (ms)": ms_per_step,
            "step": step,
            "lr": parts.schedules.learning_rate(step + 1),
            "wd": parts.schedules.weight_decay(step + 1),
            **parts.model.hyperparameters(step),
            "grad_norm": metrics.pop("grad_norm"),
            "images_per_s": images_per_s,
            "data_wait": data_wait,
            "bad_images": bad_images,
            **metrics,
        }
    )
    # Once an epoch, and not while an untrained encoder still looks collapsed.
    if iteration == 0 and epoch >= max(1, config.optimization.warmup):
        warning = parts.model.warning(metrics, parts.batch.total)
        if warning:
            log.say(f"warning: {warning}")


def require_finite(config: Config, parts: Parts, result: StepResult) -> None:
    """Stop the run if a loss or gradient norm was not finite; the weights are those before it.

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
