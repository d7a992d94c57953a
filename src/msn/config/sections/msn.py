"""Sections of an MSN pre-training, where they have more than those of all methods."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag

from msn.config.sections.base import (
    BelowOne,
    Choices,
    Divisor,
    Few,
    NonNegative,
    PathText,
    Probability,
    Section,
    Side,
    Width,
)
from msn.config.sections.criterion import Criterion
from msn.config.sections.data import CropScale, Data
from msn.config.sections.meta import Meta
from msn.config.sections.optimization import Optimization

PRIOR_TAGS = ("prior as text", "prior as mapping")


def _named_prior(prior: object) -> object:
    return {"power_law": 0.25} if prior == "power_law" else prior


def _prior_tag(prior: object) -> str:
    return PRIOR_TAGS[isinstance(prior, (dict, PowerLaw))]


class PowerLaw(Section):
    """Prior weights proportional to k**-power_law for k = 1..num_proto (PMSN)."""

    power_law: Annotated[float, Field(ge=-10, le=10)]
    """Exponent; 0 is uniform, 0.25 the value of the PMSN paper."""


Prior = Annotated[
    Annotated[PathText, Tag(PRIOR_TAGS[0])] | Annotated[PowerLaw, Tag(PRIOR_TAGS[1])],
    Discriminator(_prior_tag),
    BeforeValidator(_named_prior),
]


class MSNCriterion(Criterion):
    """The loss."""

    num_proto: Choices = 1024
    """Number of prototypes K."""
    temperature: Divisor = 0.1
    """Softmax temperature of anchors and targets before sharpening."""
    start_sharpen: Divisor = 0.25
    """Sharpening temperature of the targets at the first step."""
    final_sharpen: Divisor = 0.25
    """Sharpening temperature of the targets at the end of the stretched schedule."""
    me_max: bool = True
    """Add memax_weight * KL(mean anchor assignment || prior)."""
    memax_weight: NonNegative = 1.0
    """Weight of that term: 1 with Sinkhorn, 5 without (paper, Table 11)."""
    use_ent: bool = False
    """Add ent_weight * entropy of the anchor assignments."""
    ent_weight: NonNegative = 0.0
    """Weight of the entropy term. Absent means 0 here, 1 in the official code, whose shipped file
    says 0."""
    use_sinkhorn: bool = True
    """Balance the targets over the prototypes with Sinkhorn-Knopp."""
    sinkhorn_iterations: Few = 3
    """Row and column normalizations of Sinkhorn-Knopp."""
    freeze_proto: bool = False
    """Keep the prototypes at their initial values."""
    prior: Prior = "uniform"
    """What the mean assignment is drawn to: uniform (MSN), power_law (exponent 0.25),
    {power_law: EXPONENT}, or the path of a file with num_proto weights."""
    ensemble: Few = 1
    """Projection heads, each with num_proto prototypes, that learn together (Ruan et al. 2023)."""
    ensemble_temperature: Divisor = 0.05
    """Softmax temperature of their weights: low, and the surest head of an image counts alone."""


class MSNData(Data):
    """The images and their views."""

    label_smoothing: BelowOne = 0.0
    """Smoothing of the prototype labels."""
    patch_drop: BelowOne = 0.15
    """Fraction of patches that each random view loses."""
    mask_scope: Literal["batch", "global", "image"] = "batch"
    """One random choice of kept patches for each process's batch (official), for the global batch,
    or for each image. Only with the last two is a run the same on any number of processes."""
    rand_size: Side = 224
    """Side of the target and random views, px."""
    focal_size: Side = 96
    """Side of the focal views, px."""
    rand_views: Few = 1
    """Masked anchor views per image; at least 1, since only they are masked."""
    focal_views: Annotated[int, Field(ge=0, le=1000)] = 10
    """Small unmasked anchor views per image."""
    rand_crop_scale: CropScale = (0.3, 1.0)
    """Smallest and largest area of the target and random crops, as fractions of the image."""
    focal_crop_scale: CropScale = (0.05, 0.3)
    """Smallest and largest area of the focal crops, as fractions of the image."""


class MSNMeta(Meta):
    """The model, and how a run starts."""

    hidden_dim: Width = 2048
    """Hidden width of the projection head."""
    output_dim: Width = 256
    """Output width of the projection head, and width of a prototype."""
    use_bn: bool = True
    """BatchNorm in the projection head."""
    bottleneck: int = 1
    """No effect."""
    two_layer: bool = False
    """No effect."""
    use_pred_head: bool = False
    """No effect."""
    use_fp16: bool = False
    """No effect; see precision."""


class MSNOptimization(Optimization):
    """AdamW and its schedules."""

    ema: Annotated[tuple[Probability, Probability], Strict(False)] = (0.996, 1.0)
    """Momentum of the target at the first step and at the end of the stretched schedule."""
