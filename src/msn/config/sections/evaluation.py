"""Sections of the files for linear evaluation and fine-tuning.

The keys of the official file for linear evaluation keep their names and meanings.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from msn.config.sections.base import (
    BelowOne,
    Choices,
    EpochSpan,
    Few,
    GradientNorm,
    Million,
    NonNegative,
    PathText,
    Positive,
    Probability,
    Section,
    Seed,
    Side,
)
from msn.config.sections.data import CropScale, Images, Interpolation
from msn.config.sections.logging import FileStem, RunLogging
from msn.config.sections.meta import AnyModelName, RunMeta


def _one_as_several(value: Any) -> Any:
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _distinct(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("must hold one value or several different ones")
    return values


RAND_AUGMENT = re.compile(
    r"rand(-(m\d{1,2}|n\d{1,2}|p(0(\.\d+)?|1)|mstd\d{1,3}(\.\d+)?|mmax\d{1,2}|inc[01]))*",
    re.ASCII,
)


def _rand_augment(text: str) -> str:
    if text and not RAND_AUGMENT.fullmatch(text):
        raise ValueError("must be such as rand-m9-mstd0.5-inc1, or empty for none")
    return text


Rates = Annotated[
    tuple[Positive, ...],
    Strict(False),
    BeforeValidator(_one_as_several),
    AfterValidator(_distinct),
]
Counts = Annotated[
    tuple[Few, ...], Strict(False), BeforeValidator(_one_as_several), AfterValidator(_distinct)
]


class LabeledImages(Images):
    """Labeled images: the split `train` to learn from, `val` to measure with."""

    num_classes: Choices | None = None
    """Number of classes; null counts those of the training images."""
    skip_bad: bool = False
    """Go on without images that cannot be read; all are looked at before."""
    subset: PathText | None = None
    """List of the training images to learn from, in the official format; null takes all."""
    image_size: Side = 224
    """Side of the images that the encoder sees, px."""
    crop_scale: CropScale = (0.08, 1.0)
    """Smallest and largest area of the training crops, as fractions of the image."""
    flip: Probability = 0.5
    """Probability of a horizontal flip; 0 switches it off."""
    interpolation: Interpolation = "bilinear"
    """Filter of all resizing; MAE's recipes take bicubic."""


class AugmentedImages(LabeledImages):
    """Labeled images with the stronger augmentation of fine-tuning."""

    auto_augment: Annotated[str, AfterValidator(_rand_augment)] = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; empty switches it off."""
    erasing: Probability = 0.25
    """Probability that a rectangle of a training image becomes noise."""
    interpolation: Interpolation = "bicubic"
    """Filter of all resizing."""
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = 0.875
    """Share of the resized image's side that the crop for measuring keeps."""


class EvaluationMeta(RunMeta):
    """The encoder, and how a run starts."""

    model_name: AnyModelName | None = None
    """What the weights have to be of; null takes what they are."""
    weights: Literal["target", "anchor"] = "target"
    """Which encoder of the checkpoint."""
    training: bool = True
    """Train; false only measures what the best checkpoint of the run is worth."""
    load_checkpoint: bool = False
    """Insist on a checkpoint of this run to continue. One that is there is continued anyway."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware is fast at it."""
    compile: bool = False
    """Compile the encoder's blocks: faster steps, but the first takes half a minute or more."""
    seed: Seed = 0
    """Seed of every random draw."""
    master_port: int = 8888
    """No effect."""
    device: str = "cuda:0"
    """No effect; see --devices."""
    copy_data: bool = False
    """No effect; data is read where it is."""


class LinearMeta(EvaluationMeta):
    """The encoder, whose protocol, and how a run starts."""

    protocol: Literal["msn", "mae"] = "msn"
    """msn reads class tokens before the final norm, through a LayerNorm, and takes SGD with
    Nesterov momentum; mae reads them after it, through a BatchNorm without weights, takes LARS, and
    cuts a crop that does not fit to the image in place of drawing another."""


class FinetuneMeta(EvaluationMeta):
    """The encoder, what is trained of it, and how a run starts."""

    pool: Literal["cls", "patches"] | None = None
    """What the classifier sees: the normalized class token, or the patches' normalized mean; null
    takes the class token, but for encoders known to be of MAE or SimMIM, in whose losses it has no
    part."""
    drop_path_rate: BelowOne = 0.2
    """Stochastic depth of the last block, linear from 0 at the first."""
    checkpoint_activations: bool = False
    """Compute the blocks' activations again in the backward pass: less memory, more time."""
    trained_blocks: Few | None = None
    """Train only this many last blocks and what comes after them; null trains all."""


class EvaluationLogging(RunLogging):
    """Where the encoder comes from, what a run writes, and where."""

    pretrain_path: PathText
    """Checkpoint of the pre-training: the file."""
    write_tag: FileStem = "eval"
    """First part of the names of all files written."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""


class EvaluationOptimization(Section):
    """Length and warm-up of a run."""

    epochs: Million = 100
    """Length of the run."""
    warmup: EpochSpan = 0.0
    """Epochs of linear warm-up from 0 to lr."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.warmup > self.epochs:
            rule = f"{self.warmup:g} epochs are longer than the run of {self.epochs}"
            yield "warmup", f"{rule}; lower it or raise optimization.epochs"


class LinearOptimization(EvaluationOptimization):
    """The optimizer of the linear classifiers, its rate falling as a cosine to 0."""

    batch_size: Million = 256
    """Images per process and step."""
    lr: Rates = (6.4,)
    """Highest learning rate (the official 6.4 of MSN is for 8,192 images a step, that of MAE for
    16,384); of a list, each trains classifiers of its own on the same features."""
    num_blocks: Counts = (1,)
    """How many last blocks give their class token; of a list, each is combined with each lr."""
    weight_decay: NonNegative = 0.0
    """Of the weights of the linear layer."""
    normalize: bool = True
    """Scale the features to unit length before the linear layer; no effect in MAE's protocol."""


class FinetuneOptimization(EvaluationOptimization):
    """AdamW with layer-wise learning rates, warm-up and cosine."""

    batch_size: Million = 64
    """Images per process and micro-batch."""
    accumulate: Few = 1
    """Micro-batches per step."""
    lr: Positive = 2e-3
    """Learning rate of the classifier after warm-up."""
    final_lr: NonNegative = 1e-6
    """Learning rate at the end of the cosine."""
    warmup: EpochSpan = 5.0
    """Epochs of linear warm-up from 0 to lr."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Learning rate of a block over that of the next one."""
    weight_decay: NonNegative = 0.05
    """Of all but biases, norms, class token and position embeddings."""
    clip_grad: GradientNorm | None = None
    """Largest gradient norm; null does not clip."""
    ema: BelowOne | None = None
    """Momentum of a moving average of the weights, which then is measured; null has none."""


class FinetuneCriterion(Section):
    """The loss, and the mixing of images that goes with it."""

    label_smoothing: BelowOne = 0.1
    """Share of the label spread over all classes."""
    mixup: NonNegative = 0.8
    """Parameter of the beta distribution that mixes two images; 0 switches it off."""
    cutmix: NonNegative = 1.0
    """Parameter of that for pasting a part of one into another; 0 switches it off."""
    switch_prob: Probability = 0.5
    """Probability of cutmix rather than mixup, where both are on."""
