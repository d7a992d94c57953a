"""The dry run: what a config would do and what it would cost, without doing it."""

import torch

from msn.config.load import Config
from msn.methods import Cost, Fact, method_of
from msn.train.build import (
    Batch,
    Schedules,
    build_schedules,
    open_images,
    share_out,
    use_bf16,
)
from msn.train.build import steps_per_epoch as whole_batches


def describe(config: Config, device: torch.device, processes: int = 1) -> str:
    """The plan as text, one fact a line. Reads the list of images, builds no real weights.

    Raises:
        UserError: the images that the config names are not there.
    """
    source = open_images(config.data, "train")
    batch = share_out(config, processes)
    steps = whole_batches(batch, len(source))
    method, channels = method_of(config), config.data.channels or source.channels
    bf16 = use_bf16(config.meta.precision, device)
    cost = method.cost(config, channels, bf16=bf16)
    lines = [
        *step_lines(batch, config.optimization.epochs, len(source), steps),
        *schedule_lines(build_schedules(config, steps), config, steps),
        *method.plan(config, channels, steps),
        *(cost_lines(cost, batch, steps, bf16=bf16) if cost else ()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {fact}" for name, fact in lines)


def step_lines(batch: Batch, epochs: int, images: int, steps: int) -> list[Fact]:
    """Batch and length of the run."""
    return [
        ("images", f"{images:,}"),
        ("global batch", str(batch)),
        ("steps", f"{steps:,} per epoch x {epochs} epochs = {steps * epochs:,}"),
    ]


def schedule_lines(schedules: Schedules, config: Config, steps: int) -> list[Fact]:
    """Values at the first and last step, and of the learning rate at its peak."""
    last = steps * config.optimization.epochs
    peak = max(1, int(config.optimization.warmup * steps))
    rate, decay = schedules.learning_rate, schedules.weight_decay
    rates = f"{rate(1):.6g} -> {rate(peak):.6g} (step {peak:,}) -> {rate(last):.6g}"
    return [
        ("learning rate", rates),
        ("weight decay", f"{decay(1):.6g} -> {decay(last):.6g}"),
    ]


def cost_lines(cost: Cost, batch: Batch, steps: int, *, bf16: bool) -> list[Fact]:
    """Arithmetic and memory."""
    per_epoch = cost.flops * steps * batch.total
    memory = batch.micro * cost.activation_bytes
    precision = "bf16" if bf16 else "fp32"
    return [
        ("FLOPs", f"{cost.flops:.4g} per image, {per_epoch:.4g} per epoch"),
        ("activations", f"about {memory / 2**30:,.2f} GiB in {precision} for {batch.micro} images"),
    ]
