"""The training run: its parts built from a config, one training step, and the loop.

The loop knows no method. It drives a model with `forward(views, step)`, `after_step(step)`,
`metrics(output)` and `state()`; MSN is the first such model (`msn.models.msn`).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor

from msn import checkpoint, distributed
from msn.bad_images import BadImages, bad_images_path
from msn.build import Parts, build_parts
from msn.config import Config
from msn.data.batch import Views
from msn.data.loader import Batch, training_batches, worker_count, worker_deaths
from msn.data.prefetch import on_device
from msn.errors import Interrupted, RunError, UserError
from msn.files import replacing
from msn.keyed import Stream, seed64
from msn.models.msn import MSNOutput
from msn.optim import set_hyperparameters, step_unless
from msn.probe import Probe
from msn.runlog import RunLog, StepTimer


class StepResult(NamedTuple):
    """What one training step leaves behind for the run log."""

    output: MSNOutput
    loss: Tensor
    grad_norm: Tensor


def train_step(parts: Parts, views: Views, step: int) -> StepResult:
    """One optimiser step on one batch of normalised views.

    Order as in the official code: losses at `step`, hyperparameters of the schedule's next step,
    backward, clip the encoder, AdamW, moving average. A step that is not finite changes nothing.
    """
    model, optimizer, schedules = parts.model, parts.optimizer, parts.schedules
    # Stochastic depth draws from the global generators: key them, so that a resumed run agrees.
    torch.manual_seed(seed64(parts.seed, Stream.STEP, step, distributed.rank()))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.bf16):
        output = parts.replica(views, step=step)
    set_hyperparameters(
        optimizer,
        learning_rate=schedules.learning_rate(step + 1),
        weight_decay=schedules.weight_decay(step + 1),
    )
    output.total.backward()
    limit = parts.clip_grad if parts.clip_grad is not None else torch.inf
    grad_norm = torch.nn.utils.clip_grad_norm_(model.anchor.parameters(), limit)
    loss = distributed.mean(output.total.detach())
    step_unless(optimizer, parts.guard.update(step, loss, grad_norm))
    model.after_step(step)
    return StepResult(output, loss, grad_norm)


def pretrain(config: Config, device: torch.device) -> None:
    """Run the experiment of a config to its end, or on from where it was interrupted.

    Raises:
        UserError: something that was asked for cannot be done; nothing is overwritten.
        RunError: the loss or a gradient stopped being finite.
        Interrupted: a signal asked to stop; the run is saved.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    parts = build_parts(config, device)
    checkpoint.prepare_folder(folder)
    start = resume(config, parts, folder, tag)
    with replacing(checkpoint.config_path(folder, tag)) as path:
        path.write_text(config.dump_yaml(), encoding="utf-8")
    probe = Probe(config, parts) if config.logging.probe else None
    with RunLog(
        folder,
        tag,
        start_step=start,
        total_steps=parts.total_steps,
        tensorboard=config.logging.tensorboard,
    ) as log:
        bad_images = BadImages(
            bad_images_path(folder, tag),
            images=len(parts.source),
            max_bad=config.data.max_bad,
            start_step=start,
            say=log.say,
        )
        if start < parts.total_steps:
            train(config, parts, log, bad_images, probe, start)
        log.say(
            f"finished: {config.optimization.epochs} epochs, {parts.total_steps} steps;"
            f" weights in {checkpoint.latest_path(folder, tag)}"
        )
    if probe and probe.settings.report:
        probe.report(folder, tag)


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
    timer = StepTimer()
    with stop_on_signal() as stop, worker_deaths():
        for step, (views, bad) in enumerate(batches(config, parts, start), start):
            timer.data_ready()
            bad_images.record(step, bad)
            result = train_step(parts, views.normalised(parts.mean, parts.std), step)
            timer.step_done(len(views.target))

            done, stopping = step + 1, stop.is_set()
            epochs_done = done // per_epoch if done % per_epoch == 0 else 0
            logs = step % per_epoch % logging.log_freq == 0
            saves = epochs_done or done % logging.checkpoint_freq_itr == 0 or stopping
            # The only waits for the device: at a log line, at a save, or where it is the host.
            if logs or saves or parts.device.type == "cpu":
                require_finite(config, parts, result)
            if logs:
                log_step(config, parts, log, timer, result, step, bad_images.count)
            with timer.aside():
                # The save comes last: what it says is done has been logged.
                if probe and epochs_done and probe.is_due(epochs_done):
                    log.probe(step, epochs_done, probe.top1())
                if saves:
                    save(config, parts, result, done)
            if stopping and done < parts.total_steps:
                raise Interrupted(
                    f"stopped after step {done} of {parts.total_steps} and saved;"
                    " the same command goes on from there"
                )


def batches(config: Config, parts: Parts, start: int) -> Iterator[Batch]:
    """The batches of all steps from `start` on, on the device."""
    loaded = training_batches(
        parts.source,
        parts.views,
        batch_size=parts.batch.own,
        steps_per_epoch=parts.steps_per_epoch,
        start_step=start,
        stop_step=parts.total_steps,
        seed=parts.seed,
        num_workers=worker_count(config.data.num_workers),
        rank=distributed.rank(),
        world_size=parts.batch.processes,
    )
    return on_device(loaded, parts.device, pin_memory=config.data.pin_mem)


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
    metrics = {name: float(value) for name, value in parts.model.metrics(result.output).items()}
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
            "momentum": parts.schedules.momentum(step),
            "grad_norm": float(result.grad_norm),
            "images_per_s": images_per_s,
            "data_wait": data_wait,
            "bad_images": bad_images,
            **metrics,
        }
    )
    # Once an epoch, and not while an untrained encoder still looks collapsed.
    if iteration == 0 and epoch >= max(1, config.optimization.warmup):
        warning = parts.model.verdict(metrics, images=parts.batch.total)
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
        " likely cause is a learning rate too high for this model or a patch_drop too low for a"
        " large one: lower optimization.lr, lengthen optimization.warmup, raise data.patch_drop,"
        f" or set meta.precision: fp32; {kept}"
    )


def save(config: Config, parts: Parts, result: StepResult, done: int) -> None:
    """Write the latest checkpoint after `done` steps, and a numbered one where it is due."""
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    epochs, inside = divmod(done, parts.steps_per_epoch)
    state = {
        **parts.model.state(),
        "opt": parts.optimizer.state_dict(),
        "epoch": epochs,
        "batch_size": parts.batch.own,
        "world_size": parts.batch.processes,
        "lr": config.optimization.lr,
        "temperature": config.criterion.temperature,
        "loss": float(result.loss),
        "step": done,
        "steps_per_epoch": parts.steps_per_epoch,
        "config": config.model_dump(mode="json"),
        "mean": parts.mean.tolist(),
        "std": parts.std.tolist(),
        "version": checkpoint.VERSION,
    }
    frequency = config.logging.checkpoint_freq
    early = epochs < frequency and epochs % 10 == 0
    last = epochs == config.optimization.epochs
    if inside == 0 and (epochs % frequency == 0 or early or last):
        checkpoint.save(checkpoint.epoch_path(folder, tag, epochs), state)
    checkpoint.save(checkpoint.latest_path(folder, tag), state)


def resume(config: Config, parts: Parts, folder: Path, tag: str) -> int:
    """Load what the run is to start from; the number of steps that are already done.

    In this order: the run's own newest checkpoint, `meta.read_checkpoint` (with
    `meta.load_checkpoint`), `meta.init_from`, nothing. A file without optimiser state warm-starts.
    """
    found = checkpoint.load_newest(folder, tag, print)
    warm = config.meta.init_from
    if found is None and config.meta.load_checkpoint:
        name = config.meta.read_checkpoint
        if name is None:
            raise UserError(
                f"meta.load_checkpoint is true, but {folder} holds no checkpoint '{tag}-*';"
                " set it to false to start from the beginning"
            )
        found = checkpoint.Found(folder / name, checkpoint.load(folder / name))
    if found is not None and "opt" in found.state:
        return restore(config, parts, found)
    if found is None and warm is not None:
        found = checkpoint.Found(Path(warm), checkpoint.load(Path(warm)))
    if found is not None:
        parts.load_weights(found)
        print(f"warm start from {found.path}: weights loaded, optimiser and schedules fresh")
    return 0


def restore(config: Config, parts: Parts, found: checkpoint.Found) -> int:
    """Continue a run exactly: weights, optimiser, step.

    Raises:
        UserError: the checkpoint is of another model, or its steps are cut differently.
    """
    path, state = found
    for key in ("encoder", "prototypes", "step", "steps_per_epoch", "config"):
        if key not in state:
            raise UserError(
                f"{path}: has optimiser state but no '{key}', so it cannot be continued exactly;"
                " name it in meta.init_from, with another logging.write_tag, to warm-start from it"
            )
    if state["steps_per_epoch"] != parts.steps_per_epoch:
        raise UserError(
            f"{path}: was made with {state['steps_per_epoch']} steps per epoch, the config gives"
            f" {parts.steps_per_epoch}; use the same data, criterion.batch_size and"
            " optimization.accumulate, or another logging.write_tag"
        )
    parts.load_weights(found)
    try:
        parts.optimizer.load_state_dict(state["opt"])
    except (ValueError, KeyError, TypeError):
        raise checkpoint.mismatch(path, "opt", ["it has other parameter groups"]) from None
    for change in config_changes(state["config"], config.model_dump(mode="json")):
        print(f"changed since the checkpoint: {change}")
    print(f"resumed from {path}: {state['step']} of {parts.total_steps} steps done")
    return int(state["step"])


def config_changes(old: dict[str, object], new: dict[str, object], prefix: str = "") -> list[str]:
    """Keys whose value differs between two resolved configs, as 'key: old -> new'."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += config_changes(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return changes


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, read at step boundaries. A second one is immediate."""
    stop = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
