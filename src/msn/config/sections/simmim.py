"""Sections of a SimMIM pre-training, where they differ from those of all methods."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from msn.config.sections.base import (
    BelowOne,
    EpochSpan,
    GradientNorm,
    Million,
    NonNegative,
    Positive,
    Side,
)
from msn.config.sections.criterion import Criterion
from msn.config.sections.data import ImageData
from msn.config.sections.meta import CONV_STEMS, AnyModelName, Meta
from msn.config.sections.optimization import Optimization
from msn.config.sections.resnet import AnyEncoder, ResNetSize
from msn.config.sizes import RESNETS

Share = Annotated[float, Field(gt=0, lt=1)]
RESNET_STRIDE = RESNETS["resnet50"].stride
STAGE_STRIDES = (4, 4, 8, 16)
"""Pixels of the image for a place of what enters each stage."""


class SimMIMCriterion(Criterion):
    """What is masked, and the loss of the reconstructed pixels."""

    variant: Literal["simmim", "a2mim"] = "simmim"
    """What the token does to masked features: simmim puts it in their place, a2mim, for ResNets
    only, adds it to them, scaled by a learned gate first."""
    mask_unit: Side = 32
    """Side of the squares that are masked, px."""
    mask_ratio: Share = 0.6
    """Share of the squares of each image that is masked, rounded up: 30 of 49 at 224 px."""
    fill: Literal["none", "zero", "mean"] | None = None
    """What a ResNet sees in masked pixels: themselves, the mean of the data set, or that of the
    image. null takes mean, as a ResNet's stem sees up to 5 px across the border of a square. A ViT
    has its patches masked whole, and nothing is filled."""
    token_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """Stage of a ResNet, from 0, whose input is masked; null takes 0 for simmim, 3 for a2mim."""
    token_gate: Positive | None = 1e-6
    """First value of a2mim's gate; null has no gate."""
    loss: Literal["l1", "focal_l1"] | None = None
    """Of the differences of masked pixels; null takes l1 for simmim, focal_l1 for a2mim."""
    frequency_weight: NonNegative | None = None
    """Weight of the focal frequency loss; null takes 0 for simmim, 0.5 for a2mim."""

    @property
    def stage(self) -> int:
        """The stage of a ResNet whose input is masked."""
        own = 3 if self.variant == "a2mim" else 0
        return own if self.token_stage is None else self.token_stage

    @property
    def pixel_loss(self) -> tuple[Literal["l1", "focal_l1"], float]:
        """What differences count, and the weight of the frequency loss."""
        a2mim = self.variant == "a2mim"
        kind = self.loss or ("focal_l1" if a2mim else "l1")
        own = 0.5 if a2mim else 0.0
        return kind, own if self.frequency_weight is None else self.frequency_weight


class SimMIMMeta(Meta):
    """The encoder, and how a run starts."""

    method: Literal["simmim"] = "simmim"
    """Pre-training method."""
    model_name: AnyModelName | None = "deit_base"
    """One of the official encoders of MSN, or a ResNet."""
    encoder: AnyEncoder | None = None  # type: ignore[assignment]
    """A Vision Transformer or ResNet of any size; replaces model_name."""
    positions: Literal["shared", "block", "learned"] = "shared"
    """What tells a ViT where a patch is: relative biases, of one table for all blocks (official) or
    one for each, or learned position embeddings, which make it the plain ViT."""
    layer_scale: Positive | None = 0.1
    """First value of the scales of each branch of a ViT with relative biases; null has none."""
    drop_path_rate: BelowOne = 0.1
    """Stochastic depth of the last block, linear from 0 at the first."""

    @property
    def is_resnet(self) -> bool:
        """Whether the encoder is a ResNet."""
        return self.model_name in RESNETS or isinstance(self.encoder, ResNetSize)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; of a ResNet that of a place of its last map."""
        return RESNET_STRIDE if self.is_resnet else super().patch_size


class SimMIMOptimization(Optimization):
    """AdamW and its schedules, as in SimMIM's official code."""

    schedule: Literal["multistep", "cosine", "linear"] = "multistep"
    """Learning rate after the warm-up: multistep times gamma at each of the milestones; cosine from
    lr to final_lr, which counts the warm-up as time gone; linear from lr to a hundredth of it."""
    milestones: Annotated[tuple[EpochSpan, ...], Strict(False)] = (700.0,)
    """Epochs after which multistep lowers the rate."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each milestone."""
    lr_batch: Million | None = 512
    """Number of images that start_lr, lr and final_lr are for: they are scaled by the global batch
    over it; null does not scale."""
    warmup: EpochSpan = 10.0
    """Epochs of linear warm-up from start_lr to lr."""
    start_lr: NonNegative = 5e-7
    """Learning rate at the first step."""
    lr: NonNegative = 1e-4
    """Learning rate after warm-up."""
    final_lr: NonNegative = 5e-6
    """Learning rate at the end of the cosine."""
    weight_decay: NonNegative = 0.05
    """Weight decay at the first step."""
    final_weight_decay: NonNegative = 0.05
    """Weight decay at the last step, by cosine."""
    clip_grad: GradientNorm | None = 5.0
    """Largest gradient norm of all parameters; null does not clip."""
    schedule_stretch: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Schedules are laid out over this many times the run, and cut at its end."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield from super()._problems()
        if list(self.milestones) != sorted(self.milestones):
            yield "milestones", f"{list(self.milestones)} do not grow; sort them"


def mask_problems(
    data: ImageData, criterion: SimMIMCriterion, meta: SimMIMMeta
) -> Iterator[tuple[str, str]]:
    """Find what cannot be masked as it is asked for: (key, broken rule and remedy) pairs."""
    size, unit, stage = data.image_size, criterion.mask_unit, criterion.stage
    patch = STAGE_STRIDES[stage] if meta.is_resnet else meta.patch_size
    if size % meta.patch_size:
        rule = f"{size} is not a multiple of the {meta.patch_size} px of a place of the last map"
        yield "data.image_size", f"{rule}; change it"
    if size % unit or unit % patch:
        rule = f"{unit} does not divide data.image_size {size}, or is no multiple of the {patch} px"
        yield "criterion.mask_unit", f"{rule} of a place that is masked; change it"
    units = (size // unit) ** 2
    if units and math.ceil(units * criterion.mask_ratio) >= units:
        rule = f"{criterion.mask_ratio:g} masks all {units} squares of an image"
        yield "criterion.mask_ratio", f"{rule}; lower it, or criterion.mask_unit"
    if meta.is_resnet:
        if stage and criterion.fill == "none":
            rule = f"none shows the masked pixels to the stages before stage {stage}, where the"
            yield "criterion.fill", f"{rule} token is (criterion.token_stage); use mean or zero"
    elif criterion.variant == "a2mim":
        yield "criterion.variant", "a2mim is for ResNets; use simmim, or a ResNet"
    elif meta.model_name in CONV_STEMS:
        yield "meta.model_name", f"{meta.model_name} has no patches to mask; use one with patches"
