"""MSN's part of the dry run: views, parameters, schedules and cost."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from msn.config.kinds import MSNConfig
from msn.methods.base import Cost, Fact, activation_bytes
from msn.methods.msn.build import build_anchor, momentum_schedule, sharpening_schedule
from msn.models.masking import kept_patches
from msn.models.vit import VisionTransformer


def plan_lines(config: MSNConfig, channels: int, steps_per_epoch: int) -> list[Fact]:
    """List the facts about views, parameters and MSN's own schedules."""
    with torch.device("meta"):
        anchor = build_anchor(config, channels)
    return [
        *views_lines(config, anchor),
        *parameter_lines(config, anchor),
        *schedule_lines(config, steps_per_epoch),
    ]


def views_lines(config: MSNConfig, anchor: VisionTransformer) -> list[Fact]:
    """List the views of one image and their tokens."""
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


def parameter_lines(config: MSNConfig, anchor: VisionTransformer) -> list[Fact]:
    """Count the parameters of each part; the target has as many as encoder and head."""
    head = sum(parameter.numel() for parameter in anchor.fc.parameters())
    encoder = sum(parameter.numel() for parameter in anchor.parameters()) - head
    criterion = config.criterion
    head *= criterion.ensemble
    prototypes = criterion.ensemble * criterion.num_proto * config.meta.output_dim
    trained = encoder + head + (0 if criterion.freeze_proto else prototypes)
    parts = f"encoder {encoder:,}, head {head:,}, prototypes {prototypes:,}"
    return [("parameters", f"{parts}; trained {trained:,}")]


def schedule_lines(config: MSNConfig, steps_per_epoch: int) -> list[Fact]:
    """List momentum and sharpening at the first and the last step."""
    last = steps_per_epoch * config.optimization.epochs - 1
    momentum = momentum_schedule(config, steps_per_epoch)
    sharpening = sharpening_schedule(config, steps_per_epoch)
    return [
        ("target momentum", f"{momentum(0):.6g} -> {momentum(last):.6g}"),
        ("sharpening", f"{sharpening(0):.6g} -> {sharpening(last):.6g}"),
    ]


def cost(config: MSNConfig, channels: int, *, bf16: bool) -> Cost:
    """Count what one image costs in a step, in the encoders, where nearly all of the cost is."""
    data = config.data
    with torch.device("meta"):
        anchor = build_anchor(config, channels)
    tokens = data.rand_views * (
        1 + kept_patches(patches_of(anchor, data.rand_size), data.patch_drop)
    )
    if data.focal_views:
        tokens += data.focal_views * (1 + patches_of(anchor, data.focal_size))
    return Cost(flops_per_image(config, anchor), activation_bytes(anchor.blocks, tokens, bf16=bf16))


def patches_of(anchor: VisionTransformer, size: int) -> int:
    """Count the patches of a square view."""
    rows, columns = anchor.patch_embed.grid(size, size)
    return rows * columns


def flops_per_image(config: MSNConfig, anchor: VisionTransformer) -> float:
    """Count the floating-point operations of one image in one step.

    Those are the target's forward pass, and the anchor's forward and backward passes.

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
    flops: float = (target + data.rand_views * random + data.focal_views * focal) / 2
    return flops
