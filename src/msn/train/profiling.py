"""`--profile N`: where the time of a training step goes, as a table and as a trace.

Builds the run as training would, does some steps and stops. Nothing of the run is read or changed:
no checkpoint, no log, no lock.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from msn.config.kinds import Config, EvaluationFile, RunFile
from msn.evaluation.job import Job
from msn.evaluation.resuming import Learner
from msn.runtime import checkpoint, collectives
from msn.runtime.collectives import agreed
from msn.runtime.errors import UserError
from msn.runtime.files import replacing
from msn.runtime.log import logger
from msn.runtime.wording import counted
from msn.train.build import build_parts
from msn.train.learning import TO_DEVICE, Learning, training_batches
from msn.train.pretraining import batches
from msn.train.step import train_step

# Labels of `record_function` in the step, in its order; they cost microseconds without a profiler.
WAIT = "data wait"
AFTER = ("backward", "gradient norm", "optimizer", "after the step")
STEPS = "steps"
WARM_UP = 3  # steps before those that count: first allocations, first batches, compilation

Evaluation = TypeVar("Evaluation", bound=EvaluationFile)


class Steps(NamedTuple):
    """The steps of a run, and what they are made of.

    Attributes:
        batches: of all steps, from the first.
        take: takes the step of a batch and a number.
        phases: labels of `record_function` in a step, in its order.
        total: how many steps the run has.
        images: of a step, over all processes.
    """

    batches: Iterator[Any]
    take: Callable[[Any, int], None]
    phases: tuple[str, ...]
    total: int
    images: int


def profile_pretraining(config: Config, device: torch.device, steps: int) -> None:
    """Profile some steps of a pre-training; see `profile_steps`."""

    def prepared() -> Steps:
        parts = build_parts(config, device).replicated()

        def take(batch: Any, step: int) -> None:
            with record_function(TO_DEVICE):
                views = batch.views.normalized(parts.mean, parts.std)
            train_step(parts, views, step)

        loaded, phases = batches(config, parts, 0), (*parts.model.PHASES, *AFTER)
        return Steps(loaded, take, phases, parts.total_steps, parts.batch.total)

    profile_steps(config, device, steps, prepared)


def profile_learning(
    config: Evaluation,
    device: torch.device,
    steps: int,
    prepare: Callable[[Evaluation, torch.device], tuple[Job, Learner]],
) -> None:
    """Profile some steps of a linear evaluation or fine-tuning; see `profile_steps`."""

    def prepared() -> Steps:
        job, learner = prepare(config, device)
        task = Learning(config, job, learner)
        loaded = training_batches(config, job, 0)
        return Steps(loaded, task.step, learner.PHASES, task.total_steps, task.images_per_step)

    profile_steps(config, device, steps, prepared)


def profile_steps(
    config: RunFile, device: torch.device, steps: int, prepare: Callable[[], Steps]
) -> None:
    """Profile some training steps; print a breakdown and write a Chrome trace on rank 0.

    Raises:
        UserError: the run has not that many steps, or is misconfigured.
    """
    with agreed():
        run = prepare()
        if WARM_UP + steps > run.total:
            raise UserError(
                f"--profile {steps}: the run has {run.total} steps, of which {WARM_UP} warm"
                " up; profile fewer or raise optimization.epochs"
            )
    profiler = recorded(run, device, steps)
    if collectives.rank() != 0:
        return
    folder = Path(config.logging.folder)
    checkpoint.prepare_folder(folder)
    trace = checkpoint.trace_path(folder, config.logging.write_tag)
    phases = (WAIT, TO_DEVICE, *run.phases)
    logger.info(breakdown(list(profiler.events() or ()), phases, steps, run.images))
    with replacing(trace) as path:
        profiler.export_chrome_trace(str(path))
    logger.info("a trace for https://ui.perfetto.dev is all that was written")


def recorded(run: Steps, device: torch.device, steps: int) -> profile:
    """Record a profile of the steps after the warm-up."""

    def one(step: int) -> None:
        with record_function(WAIT):
            batch = next(run.batches)
        run.take(batch, step)

    for step in range(WARM_UP):
        one(step)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    profiler = profile(activities=activities)
    with profiler, record_function(STEPS):
        for step in range(WARM_UP, WARM_UP + steps):
            one(step)
        if cuda:
            torch.cuda.synchronize(device)
    return profiler


def breakdown(events: list[FunctionEvent], phases: Sequence[str], steps: int, images: int) -> str:
    """Tabulate the labeled parts of a step, in milliseconds and as shares.

    On a GPU a second pair of columns tells how long its kernels ran: those that were launched while
    a part was under way, from whichever thread.
    """
    (whole,) = (event for event in events if event.name == STEPS)
    total = whole.time_range.elapsed_us()
    host: dict[str, float] = {
        part: sum(event.time_range.elapsed_us() for event in events if event.name == part)
        for part in phases
    }
    columns = {"host ms": host}
    if any(event.kernels for event in events):
        columns["device ms"] = device_time(events, phases)
    per_step = total / steps
    lines = [
        f"{counted(steps, 'step')} of {counted(images, 'image')}, {per_step / 1000:.1f} ms each,"
        f" {images / per_step * 1e6:.1f} images/s (profiled, so a little slower than a run)",
        f"{'':18}" + "".join(f"{name:>12}{'%':>7}" for name in columns),
    ]
    for part in phases:
        cells = (
            f"{times[part] / steps / 1000:12.2f}{100 * times[part] / total:7.1f}"
            for times in columns.values()
        )
        lines.append(f"{part:18}" + "".join(cells))
    rest = total - sum(host.values())
    lines.append(f"{'everything else':18}{rest / steps / 1000:12.2f}{100 * rest / total:7.1f}")
    return "\n".join(lines)


def device_time(events: list[FunctionEvent], phases: Sequence[str]) -> dict[str, float]:
    """Sum up the microseconds that kernels ran, by the part that launched them."""
    spans = [event for event in events if event.name in phases]
    times = dict.fromkeys(phases, 0.0)
    for event in events:
        if not event.kernels:
            continue
        launched = event.time_range.start
        for span in spans:
            if span.time_range.start <= launched < span.time_range.end:
                times[span.name] += sum(kernel.duration for kernel in event.kernels)
                break
    return times
