"""The dry run of a pre-training: what its config would do and cost."""

from pathlib import Path

import torch

from msn.config.kinds import Config
from msn.config.sections.optimization import Optimization
from msn.methods import Cost, Fact, method_of
from msn.methods.schedules import Schedules
from msn.runtime.devices import described, use_bf16
from msn.runtime.wording import aligned, counted
from msn.train.build import Batch, Parts, build_parts
from msn.train.resuming import foreseen

META = torch.device("meta")
SMALL_BATCH = 64
RECIPE = Optimization.model_fields["lr"].default


def describe(config: Config, device: torch.device, processes: int = 1) -> str:
    """Describe what a run would do, one fact a line, without building real weights.

    It reads the list of images.

    Raises:
        UserError: the images that the config names are not there.
    """
    left_out = {"copy_data": False, "shard": False, "compile": False}
    simple = config.model_copy(update={"meta": config.meta.model_copy(update=left_out)})
    with META:
        parts = build_parts(simple, META, processes=processes)
    method, channels, steps = method_of(config), parts.source.channels, parts.steps_per_epoch
    bf16 = use_bf16(config.meta.precision, device)
    cost = method.cost(config, channels, bf16=bf16)
    lines = [
        *facts(config, parts, device, foreseen(config, parts)),
        *schedule_lines(parts.schedules, config, steps),
        *method.plan(config, channels, steps),
        *(cost_lines(cost, parts.batch, steps, bf16=bf16) if cost else ()),
    ]
    said = [f"note: {note}" for note in (*config.notices(), *notes(config, parts))]
    return "\n".join([aligned(lines), *said])


def facts(config: Config, parts: Parts, device: torch.device, start: str) -> list[Fact]:
    """List the facts about a run, as the run and its dry run print them.

    Args:
        config: of the run.
        parts: of it.
        device: that it computes on.
        start: where it starts from.
    """
    steps, epochs = parts.steps_per_epoch, config.optimization.epochs
    bf16 = use_bf16(config.meta.precision, device)
    return [
        ("device", described(device)),
        ("precision", "bf16" if bf16 else "fp32"),
        ("images", f"{len(parts.source):,}"),
        ("global batch", str(parts.batch)),
        ("steps", f"{steps:,} per epoch x {counted(epochs, 'epoch')} = {steps * epochs:,}"),
        ("output", f"{Path(config.logging.folder) / config.logging.write_tag}-*"),
        ("start", start),
    ]


def notes(config: Config, parts: Parts) -> list[str]:
    """List settings that are probably a mistake, though the run goes on with them."""
    opt, total = config.optimization, parts.batch.total
    found = []
    if opt.warmup > opt.epochs / 10:
        found.append(
            f"optimization.warmup {opt.warmup:g} is more than a tenth of the run of"
            f" {counted(opt.epochs, 'epoch')}"
        )
    if total < SMALL_BATCH and opt.lr == RECIPE:
        found.append(
            f"optimization.lr {opt.lr:g} is the recipe's, for batches of about 1,024 images, but a"
            f" step takes {total}; consider a lower one"
        )
    return [*found, *parts.model.notes(config, total * parts.steps_per_epoch)]


def schedule_lines(schedules: Schedules, config: Config, steps: int) -> list[Fact]:
    """List learning rate and weight decay at the first and last step, and the peak rate."""
    last = steps * config.optimization.epochs
    peak = max(1, int(config.optimization.warmup * steps))
    rate, decay = schedules.learning_rate, schedules.weight_decay
    rates = f"{rate(1):.6g} -> {rate(peak):.6g} (step {peak:,}) -> {rate(last):.6g}"
    return [
        ("learning rate", rates),
        ("weight decay", f"{decay(1):.6g} -> {decay(last):.6g}"),
    ]


def cost_lines(cost: Cost, batch: Batch, steps: int, *, bf16: bool) -> list[Fact]:
    """List floating-point operations and activation memory."""
    per_epoch = cost.flops * steps * batch.total
    memory = batch.micro * cost.activation_bytes
    precision = "bf16" if bf16 else "fp32"
    return [
        ("FLOPs", f"{cost.flops:.4g} per image, {per_epoch:.4g} per epoch"),
        ("activations", f"about {memory / 2**30:,.2f} GiB in {precision} for {batch.micro} images"),
    ]
