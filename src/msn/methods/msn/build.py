"""Build the parts of MSN from a config."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from msn.config.kinds import MSNConfig
from msn.methods.base import decay_groups
from msn.methods.msn.losses import LossSettings
from msn.methods.schedules import Schedule, linear
from msn.models.head import projection_head
from msn.models.vit import VisionTransformer, build_encoder


def build_anchor(config: MSNConfig, channels: int) -> VisionTransformer:
    """Build the encoder that the `meta` section describes, with its projection head."""
    return build_encoder(
        config.meta.vit_size,
        image_size=config.data.rand_size,
        in_chans=channels,
        drop_path_rate=config.meta.drop_path_rate,
        head=build_head(config),
    )


def build_head(config: MSNConfig) -> nn.Module:
    """Build a projection head."""
    meta = config.meta
    return projection_head(
        meta.vit_size.embed_dim, meta.hidden_dim, meta.output_dim, batch_norm=meta.use_bn
    )


def draw_prototypes(count: int, dim: int, *, trained: bool = True) -> nn.Parameter:
    """Draw prototypes (count, dim), uniform within +- 1 / sqrt(dim)."""
    bound = 1 / math.sqrt(dim)
    return nn.Parameter(torch.empty(count, dim).uniform_(-bound, bound), requires_grad=trained)


def draw_prototypes_of(config: MSNConfig) -> nn.Parameter:
    """Draw the prototypes of a head."""
    criterion = config.criterion
    return draw_prototypes(
        criterion.num_proto, config.meta.output_dim, trained=not criterion.freeze_proto
    )


def parameter_groups(anchor: nn.Module, prototypes: nn.Parameter) -> list[dict[str, Any]]:
    """Group parameters as in the official code: the prototypes, if trained, are not decayed."""
    groups = decay_groups(anchor)
    if prototypes.requires_grad:
        groups.append({"params": [prototypes], "decayed": False, "weight_decay": 0.0})
    return groups


def loss_settings(config: MSNConfig) -> LossSettings:
    """Read the settings of the loss; the weight of a term that is switched off is 0."""
    criterion = config.criterion
    return LossSettings(
        temperature=criterion.temperature,
        sinkhorn_iterations=criterion.sinkhorn_iterations if criterion.use_sinkhorn else 0,
        memax_weight=criterion.memax_weight if criterion.me_max else 0.0,
        ent_weight=criterion.ent_weight if criterion.use_ent else 0.0,
        label_smoothing=config.data.label_smoothing,
        ensemble_temperature=criterion.ensemble_temperature,
    )


def momentum_schedule(config: MSNConfig, steps_per_epoch: int) -> Schedule:
    """Build the schedule of the target's momentum, whose horizon is not rounded to steps."""
    start, final = config.optimization.ema
    horizon = config.optimization.horizon(steps_per_epoch)
    return partial(linear, total=horizon, start=start, final=final)


def sharpening_schedule(config: MSNConfig, steps_per_epoch: int) -> Schedule:
    """Build the schedule of T, which sharpens the targets, over the momentum's horizon."""
    criterion = config.criterion
    return partial(
        linear,
        total=config.optimization.horizon(steps_per_epoch),
        start=criterion.start_sharpen,
        final=criterion.final_sharpen,
    )
