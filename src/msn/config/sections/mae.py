"""Sections of a MAE pre-training, where they differ from those of all methods."""

from typing import Annotated, Literal

from pydantic import Field

from msn.config.sections.base import EpochSpan, Few, GradientNorm, Million, NonNegative, Width
from msn.config.sections.criterion import Criterion
from msn.config.sections.data import CropScale, ImageData, Interpolation
from msn.config.sections.meta import Meta
from msn.config.sections.optimization import Optimization


class MAECriterion(Criterion):
    """What is masked, and the decoder that predicts its pixels."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches of each image that the encoder does not see."""
    norm_pix_loss: bool = True
    """Predict pixels relative to the mean and deviation of their patch."""
    decoder_dim: Annotated[int, Field(ge=4, le=65_536, multiple_of=4)] = 512
    """Width of the decoder, a multiple of 4."""
    decoder_depth: Few = 8
    """Number of blocks of the decoder."""
    decoder_heads: Width = 16
    """Attention heads of the decoder; they divide decoder_dim."""


class MAEMeta(Meta):
    """The encoder, and how a run starts."""

    method: Literal["mae"] = "mae"
    """Pre-training method."""


class MAEData(ImageData):
    """The images."""

    crop_scale: CropScale = (0.2, 1.0)
    """Smallest and largest area of the crops, as fractions of the image."""
    interpolation: Interpolation = "bicubic"
    """Filter that crops are resized with, there and in evaluations of the encoder."""


class MAEOptimization(Optimization):
    """AdamW with betas 0.9 and 0.95, and its schedules, as in MAE's official code."""

    lr_batch: Million | None = 256
    """Number of images that start_lr, lr and final_lr are for: they are scaled by the global batch
    over it; null does not scale."""
    warmup: EpochSpan = 40.0
    """Epochs of linear warm-up from start_lr to lr."""
    start_lr: NonNegative = 0.0
    """Learning rate at the first step."""
    lr: NonNegative = 1.5e-4
    """Learning rate after warm-up."""
    final_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine."""
    weight_decay: NonNegative = 0.05
    """Weight decay at the first step."""
    final_weight_decay: NonNegative = 0.05
    """Weight decay at the last step, by cosine."""
    clip_grad: GradientNorm | None = None
    """Largest gradient norm of all parameters; null does not clip."""
    schedule_stretch: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Schedules are laid out over this many times the run, and cut at its end."""
