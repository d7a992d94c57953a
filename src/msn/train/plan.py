"""The dry run: what a config would do and what it would cost, without doing it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from msn.config.load import Config
from msn.models.encoder import VisionTransformer
from msn.models.masking import kept_patches
from msn.train.build import (
    Batch,
    Schedules,
    build_anchor,
    build_schedules,
    open_images,
    share_out,
    use_bf16,
)
from msn.train.build import steps_per_epoch as whole_batches

Line = tuple[str, str]


def describe(config: Config, device: torch.device, processes: int = 1) -> str:
    """The plan as text, one fact a line. Reads the list of images, builds no real weights.

    Raises:
        UserError: the images that the config names are not there.
    """
    source = open_images(config.data, "train")
    batch = share_out(config, processes)
    steps = whole_batches(batch, len(source))
    with torch.device("meta"):
        anchor = build_anchor(config, config.data.channels or source.channels)
    lines = [
        *views_lines(config, anchor),
        *parameter_lines(config, anchor),
        *step_lines(batch, config.optimization.epochs, len(source), steps),
        *schedule_lines(build_schedules(config, steps), config, steps),
        *cost_lines(config, anchor, batch, steps, bf16=use_bf16(config.meta.precision, device)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {fact}" for name, fact in lines)


def views_lines(config: Config, anchor: VisionTransformer) -> list[Line]:
    """Views of one image and their tokens."""
    data = config.data
    kinds = [("target view", 1, data.rand_size, 0.0)]
    kinds.append(("random views", data.rand_views, data.rand_size, data.patch_drop))
    if data.focal_views:
        kinds.append(("focal views", data.focal_views, data.focal_size, 0.0))
    lines = []
    for name, count, size, drop in kinds:
        patches = patches_of(anchor, size)
        kept = kept_patches(patches, drop)
        fact = f"{count} x {size} px: {patches} patches, {kept} kept, {patches - kept} dropped"
        lines.append((name, f"{fact}; {kept + 1} tokens with the class token"))
    return lines


def parameter_lines(config: Config, anchor: VisionTransformer) -> list[Line]:
    """Parameters of each part; the target holds as many again as encoder and head."""
    head = sum(parameter.numel() for parameter in anchor.fc.parameters())
    encoder = sum(parameter.numel() for parameter in anchor.parameters()) - head
    prototypes = config.criterion.num_proto * config.meta.output_dim
    trained = encoder + head + (0 if config.criterion.freeze_proto else prototypes)
    parts = f"encoder {encoder:,}, head {head:,}, prototypes {prototypes:,}"
    return [("parameters", f"{parts}; trained {trained:,}")]


def step_lines(batch: Batch, epochs: int, images: int, steps: int) -> list[Line]:
    """Batch and length of the run."""
    return [
        ("images", f"{images:,}"),
        ("global batch", str(batch)),
        ("steps", f"{steps:,} per epoch x {epochs} epochs = {steps * epochs:,}"),
    ]


def schedule_lines(schedules: Schedules, config: Config, steps: int) -> list[Line]:
    """Values at the first and last step, and of the learning rate at its peak."""
    last = steps * config.optimization.epochs
    peak = max(1, int(config.optimization.warmup * steps))
    rate, decay = schedules.learning_rate, schedules.weight_decay
    momentum, sharpening = schedules.momentum, schedules.sharpening
    rates = f"{rate(1):.6g} -> {rate(peak):.6g} (step {peak:,}) -> {rate(last):.6g}"
    return [
        ("learning rate", rates),
        ("weight decay", f"{decay(1):.6g} -> {decay(last):.6g}"),
        ("target momentum", f"{momentum(0):.6g} -> {momentum(last - 1):.6g}"),
        ("sharpening", f"{sharpening(0):.6g} -> {sharpening(last - 1):.6g}"),
    ]


def cost_lines(
    config: Config, anchor: VisionTransformer, batch: Batch, steps: int, *, bf16: bool
) -> list[Line]:
    """Arithmetic and memory: of the encoders, which is nearly all there is."""
    data = config.data
    flops = flops_per_image(config, anchor)
    per_epoch = flops * steps * batch.total
    tokens = data.rand_views * (
        1 + kept_patches(patches_of(anchor, data.rand_size), data.patch_drop)
    )
    if data.focal_views:
        tokens += data.focal_views * (1 + patches_of(anchor, data.focal_size))
    memory = batch.micro * activation_bytes(anchor, tokens, bf16=bf16)
    precision = "bf16" if bf16 else "fp32"
    return [
        ("FLOPs", f"{flops:.4g} per image, {per_epoch:.4g} per epoch"),
        ("activations", f"about {memory / 2**30:,.2f} GiB in {precision} for {batch.micro} images"),
    ]


def patches_of(anchor: VisionTransformer, size: int) -> int:
    """Number of patches of a square view."""
    rows, columns = anchor.patch_embed.grid(size, size)
    return rows * columns


def flops_per_image(config: Config, anchor: VisionTransformer) -> float:
    """Floating-point operations of one image in one step: target forward, anchors both ways.

    Counted, not estimated: the encoder runs on tensors without data.

    Args:
        anchor: on the meta device.
    """
    data = config.data
    kept = kept_patches(patches_of(anchor, data.rand_size), data.patch_drop)
    # Two images, as BatchNorm wants more than one row.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        large = torch.empty(2, anchor.in_chans, data.rand_size, data.rand_size)
        small = torch.empty(2, anchor.in_chans, data.focal_size, data.focal_size)
        with torch.no_grad():
            anchor(large)
        target = counter.get_total_flops()
        anchor(large, torch.empty(kept, dtype=torch.int64)).sum().backward()
        random = counter.get_total_flops() - target
        if data.focal_views:
            anchor(small).sum().backward()
        focal = counter.get_total_flops() - target - random
    return (target + data.rand_views * random + data.focal_views * focal) / 2


def activation_bytes(anchor: VisionTransformer, tokens: int, *, bf16: bool) -> float:
    """Estimate of what the blocks keep for the backward pass, for a number of tokens.

    Of each token a block keeps two residuals in fp32 and, in the precision of the matrix products,
    query, key, value, the attention's output and the MLP before its GELU (`msn.models.block`).
    """
    block = anchor.blocks[0]
    mlp_ratio = block.mlp.fc1.out_features / anchor.embed_dim
    per_token = 2 * 4 + (4 + mlp_ratio) * (2 if bf16 else 4)
    return tokens * len(anchor.blocks) * anchor.embed_dim * per_token
