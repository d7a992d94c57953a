"""The sections of a config file: every key, its default, its range and its meaning.

Sections and key names are those of the official MSN code; keys that are new here default to the
official behaviour. `msn.config.Config` is the whole file.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

# fmt: off
PATCH_SIZES = {
    "deit_tiny": 16, "deit_small": 16, "deit_small_p8": 8, "deit_small_p7": 7,
    "vitc_4gf": 16, "deit_small_convstem": 16,
    "deit_base_p8": 8, "deit_base_p7": 7, "deit_base_p4": 4, "deit_base": 16,
    "deit_large_p7": 7, "deit_large_p8": 8, "deit_large": 16,
    "deit_huge": 16, "deit_huge_p8": 8, "deit_huge_p7": 7, "deit_huge_p10": 10,
}
# fmt: on
"""Pixels per patch side of the named models; for a convolutional stem, its stride."""
MODEL_NAMES = tuple(PATCH_SIZES)
CONV_STEMS = frozenset({"vitc_4gf", "deit_small_convstem"})
"""Models whose padded stem turns a cut-off border into a further patch instead of dropping it."""

PRIOR_TAGS = ("prior as text", "prior as mapping")

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[MODEL_NAMES]

Problems = Iterable[tuple[str, str]]
"""(key below the checked section, broken rule with its remedy) pairs."""


def _refuse(problems: Problems) -> None:
    """Raise one validation error that carries every problem found."""
    found = list(problems)
    if found:
        text = "; ".join(f"{key}: {rule}" for key, rule in found)
        raise PydanticCustomError("rules", "{text}", {"text": text, "problems": found})


def _increasing(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError("must be [smallest, largest]; swap the two numbers")
    return scale


def _file_stem(tag: str) -> str:
    if not tag.isprintable() or tag in ("", ".", "..") or set(tag) & set("/\\"):
        raise ValueError("must be a plain file name: not empty, no '/' and no '\\'")
    return tag


def _one_or_three(channels: int) -> int:
    if channels not in (1, 3):  # a Literal would take true for 1
        raise ValueError("must be 1 or 3")
    return channels


def _named_prior(prior: object) -> object:
    return {"power_law": 0.25} if prior == "power_law" else prior


def _prior_tag(prior: object) -> str:
    return PRIOR_TAGS[isinstance(prior, (dict, PowerLaw))]


Whole = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Area = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
CropScale = Annotated[tuple[Area, Area], Strict(False), AfterValidator(_increasing)]
Channels = Annotated[int, AfterValidator(_one_or_three), Field(json_schema_extra={"enum": [1, 3]})]
SourceName = Literal["folder", "digits"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        _refuse(self._problems())
        return self

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Broken rules that concern more than one key."""
        yield from ()


class PowerLaw(Section):
    """Prior weights proportional to k**-power_law for k = 1..num_proto (PMSN)."""

    power_law: float
    """Exponent; 0 is uniform, 0.25 the value of the PMSN paper."""


Prior = Annotated[
    Annotated[NonEmpty, Tag(PRIOR_TAGS[0])] | Annotated[PowerLaw, Tag(PRIOR_TAGS[1])],
    Discriminator(_prior_tag),
    BeforeValidator(_named_prior),
]


class Criterion(Section):
    """The loss."""

    batch_size: Count = 64
    """Images per process and micro-batch."""
    num_proto: Annotated[int, Field(ge=2, lt=2**31)] = 1024
    """Number of prototypes K."""
    temperature: Positive = 0.1
    """Softmax temperature of anchors and targets before sharpening."""
    start_sharpen: Positive = 0.25
    """Sharpening temperature of the targets at the first step."""
    final_sharpen: Positive = 0.25
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
    sinkhorn_iterations: Count = 3
    """Row and column normalisations of Sinkhorn-Knopp."""
    freeze_proto: bool = False
    """Keep the prototypes at their initial values."""
    prior: Prior = "uniform"
    """What the mean assignment is drawn to: uniform (MSN), power_law (exponent 0.25),
    {power_law: EXPONENT}, or the path of a file with num_proto weights."""


class Data(Section):
    """The images and their views."""

    source: SourceName = "folder"
    """Where images come from: folder (class folders or flat), or digits (scikit-learn, 8x8 px)."""
    root_path: str | None = None
    """Root folder of the data set; images are in root_path/image_folder/train."""
    image_folder: str = ""
    """Folder below root_path."""
    num_workers: Whole = 10
    """Loader processes per training process; 0 loads in the training process."""
    pin_mem: bool = True
    """Page-locked host memory for faster copies to the GPU."""
    label_smoothing: BelowOne = 0.0
    """Smoothing of the prototype labels."""
    patch_drop: BelowOne = 0.15
    """Fraction of patches that each random view loses."""
    mask_scope: Literal["batch", "image"] = "batch"
    """One random choice of kept patches for the whole batch (official), or one per image."""
    rand_size: Count = 224
    """Side of the target and random views, px."""
    focal_size: Count = 96
    """Side of the focal views, px."""
    rand_views: Count = 1
    """Masked anchor views per image; at least 1, since only they are masked."""
    focal_views: Whole = 10
    """Small unmasked anchor views per image."""
    rand_crop_scale: CropScale = (0.3, 1.0)
    """Smallest and largest area of the target and random crops, as fractions of the image."""
    focal_crop_scale: CropScale = (0.05, 0.3)
    """Smallest and largest area of the focal crops, as fractions of the image."""
    flip: Probability = 0.5
    """Probability of a horizontal flip; 0 switches it off."""
    color_jitter: Probability = 0.8
    """Probability of colour jitter; 0 switches it off."""
    color_jitter_strength: Annotated[float, Field(ge=0, le=2.5)] = 0.5
    """s in ColorJitter(0.8s, 0.8s, 0.8s, 0.2s); hue shifts end at 0.5, hence s at 2.5."""
    grayscale: Probability = 0.2
    """Probability of dropping the colour; 0 switches it off."""
    blur: Probability = 0.5
    """Probability of a Gaussian blur of radius 0.1 to 2 px; 0 switches it off."""
    channels: Channels | None = None
    """Image channels; null takes the source's own."""
    mean: Annotated[tuple[float, ...], Strict(False)] | None = None
    """Mean of each channel, of values in [0, 1]; null takes the source's own."""
    std: Annotated[tuple[Positive, ...], Strict(False)] | None = None
    """Standard deviation of each channel; null takes the source's own."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.source == "folder" and not self.root_path:
            yield "root_path", "the folder source needs it; set it, or use data.source: digits"
        for key, stats in (("mean", self.mean), ("std", self.std)):
            allowed = (self.channels,) if self.channels else (1, 3)
            if stats is not None and len(stats) not in allowed:
                counts = " or ".join(map(str, allowed))
                yield key, f"has {len(stats)} numbers; give one for each of {counts} channels"
        if self.mean and self.std and len(self.mean) != len(self.std):
            yield "std", f"has {len(self.std)} numbers, mean {len(self.mean)}; give as many"


class Probe(Section):
    """A k-nearest-neighbour probe of the target encoder during the run."""

    every: Whole = 10
    """Epochs between probes; 0 probes only at the end."""
    source: SourceName | None = None
    """Labelled source; null takes data.source."""
    root_path: str | None = None
    """Its root folder; null takes data.root_path."""
    image_folder: str | None = None
    """Its folder below the root; null takes data.image_folder."""
    k: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """Temperature of the votes."""
    max_images: Count | None = None
    """At most this many training images; null takes all."""
    report: bool = False
    """At the end, print a low-shot table and draw loss curve and neighbours."""


class Logging(Section):
    """What a run writes, and where."""

    folder: NonEmpty
    """Output folder; created when missing."""
    write_tag: Annotated[str, AfterValidator(_file_stem)] = "msn"
    """First part of the names of all files written."""
    checkpoint_freq: Count = 25
    """Epochs between numbered checkpoints."""
    checkpoint_freq_itr: Count = 2500
    """Steps between saves of the latest checkpoint."""
    log_freq: Count = 10
    """Steps between log lines."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    probe: Probe | None = None
    """Probe with labelled images; null has none."""


class EncoderSize(Section):
    """A Vision Transformer of any size, in place of a named one."""

    patch_size: Count
    """Side of a patch, px."""
    embed_dim: Count
    """Width of a token."""
    depth: Count
    """Number of blocks."""
    num_heads: Count
    """Attention heads; divides embed_dim."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP over embed_dim."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.embed_dim, self.num_heads
        if width % heads:
            yield "embed_dim", f"{width} is not a multiple of num_heads {heads}; change either"


class Meta(Section):
    """The model, and how a run starts."""

    method: Literal["msn"] = "msn"
    """Pre-training method."""
    model_name: ModelName | None = "deit_small"
    """One of the official encoders."""
    encoder: EncoderSize | None = None
    """An encoder of any size; replaces model_name."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth of the last block, linear from 0 at the first."""
    hidden_dim: Count = 2048
    """Hidden width of the projection head."""
    output_dim: Count = 256
    """Output width of the projection head, and width of a prototype."""
    use_bn: bool = True
    """BatchNorm in the projection head."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware is fast at it, fp32 official."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    load_checkpoint: bool = False
    """Continue from a checkpoint."""
    read_checkpoint: str | None = None
    """File name of that checkpoint in logging.folder; null takes the latest."""
    init_from: NonEmpty | None = None
    """File of weights to start from, with a fresh optimiser."""
    copy_data: bool = False
    """Copy the data to local disk first: not available yet."""
    bottleneck: int = 1
    """No effect."""
    two_layer: bool = False
    """No effect."""
    use_pred_head: bool = False
    """No effect."""
    use_fp16: bool = False
    """No effect; see precision."""

    @model_validator(mode="before")
    @classmethod
    def _encoder_replaces_default_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("encoder") and "model_name" not in values:
            return {**values, "model_name": None}
        return values

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.model_name and self.encoder:
            yield "model_name", f"{self.model_name} and meta.encoder are both given; drop either"
        if not self.model_name and not self.encoder:
            yield "model_name", "is null and there is no meta.encoder; give either"

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; the stride of a convolutional stem."""
        if self.encoder:
            return self.encoder.patch_size
        assert self.model_name
        return PATCH_SIZES[self.model_name]

    def grid(self, size: int) -> int:
        """Patches along one side of a square view of `size` pixels."""
        if self.model_name in CONV_STEMS:
            size += self.patch_size - 1
        return size // self.patch_size


class Optimization(Section):
    """AdamW and its schedules."""

    epochs: Count = 800
    """Length of the run."""
    warmup: NonNegative = 15.0
    """Epochs of linear warm-up from start_lr to lr."""
    start_lr: NonNegative = 0.0002
    """Learning rate at the first step."""
    lr: NonNegative = 0.001
    """Learning rate after warm-up."""
    final_lr: NonNegative = 1e-6
    """Learning rate at the end of the stretched cosine."""
    weight_decay: NonNegative = 0.04
    """Weight decay at the first step."""
    final_weight_decay: NonNegative = 0.4
    """Weight decay at the end of the stretched cosine."""
    clip_grad: Positive | None = 3.0
    """Largest gradient norm of the encoder; null does not clip."""
    ema: Annotated[tuple[Probability, Probability], Strict(False)] = (0.996, 1.0)
    """Momentum of the target at the first step and at the end of the stretched schedule."""
    schedule_stretch: Annotated[float, Field(ge=1)] = 1.25
    """All schedules are laid out over this many times the run, and cut at its end."""
    accumulate: Count = 1
    """Micro-batches per step; Sinkhorn and the mean assignment see all of them."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.warmup > self.epochs:
            rule = f"{self.warmup:g} epochs are longer than the run of {self.epochs}"
            yield "warmup", f"{rule}; lower it or raise optimization.epochs"
