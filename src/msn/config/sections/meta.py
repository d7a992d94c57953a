"""Section `meta`: the method, the encoder, and how a run starts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from msn.config import sizes
from msn.config.sections.base import (
    BelowOne,
    Few,
    PathOrEmpty,
    PathText,
    Seconds,
    Section,
    Seed,
    Side,
    Width,
)
from msn.config.sizes import ENCODERS, RESNETS

PATCH_SIZES = {name: size.stride for name, size in ENCODERS.items()}
"""Pixels per patch side of the named models; for a convolutional stem, its stride."""
MODEL_NAMES = tuple(PATCH_SIZES)
CONV_STEMS = frozenset(name for name, size in ENCODERS.items() if size.patch_size is None)
"""Models whose padded stem turns a cut-off border into a further patch instead of dropping it."""

MOST_WEIGHTS = 10**11  # a few times the largest Vision Transformer there is


def official_name(name: Any) -> Any:
    """Translate a name such as `vit_small` to the official `deit_small`; leave any other name."""
    alias = f"deit_{name.removeprefix('vit_')}" if isinstance(name, str) else ""
    return alias if alias in PATCH_SIZES and name.startswith("vit_") else name


def _vit_name(name: Any) -> Any:
    """Refuse a ResNet with the reason; give any other name as `official_name` does."""
    if name in RESNETS:
        raise ValueError("must be a ViT: patches are dropped, and a ResNet takes whole images")
    return official_name(name)


if TYPE_CHECKING:
    ModelName = str
    AnyModelName = str
else:
    ModelName = Annotated[Literal[MODEL_NAMES], BeforeValidator(_vit_name)]
    AnyModelName = Annotated[Literal[(*MODEL_NAMES, *RESNETS)], BeforeValidator(official_name)]


class EncoderSize(Section):
    """A Vision Transformer of any size, in place of a named one."""

    patch_size: Side
    """Side of a patch, px."""
    embed_dim: Width
    """Width of a token."""
    depth: Few
    """Number of blocks."""
    num_heads: Width
    """Attention heads; divides embed_dim."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Hidden width of the MLP over embed_dim."""

    @property
    def size(self) -> sizes.EncoderSize:
        """The same without the checks, as encoders are built from it."""
        return sizes.EncoderSize(**self.model_dump())

    def _problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.embed_dim, self.num_heads
        if width % heads:
            yield "embed_dim", f"{width} is not a multiple of num_heads {heads}; change either"
        if int(width * self.mlp_ratio) < 1:
            rule = f"{self.mlp_ratio:g} leaves an MLP no unit at embed_dim {width}"
            yield "mlp_ratio", f"{rule}; use at least {1 / width:g}"
        weights = self.depth * width**2 * (4 + 2 * self.mlp_ratio)
        if weights > MOST_WEIGHTS:
            rule = f"{self.depth} blocks of embed_dim {width} have {weights:.1e} weights"
            yield "depth", f"{rule}; lower either, to at most {MOST_WEIGHTS:.0e}"


class RunMeta(Section):
    """What every run of several processes has."""

    collective_timeout: Seconds = 900.0
    """Seconds that the processes wait for one of them: longer than the longest probe or save."""


class Meta(RunMeta):
    """The model, and how a run starts."""

    method: Literal["msn", "mae", "simmim"] = "msn"
    """Pre-training method."""
    model_name: ModelName | None = "deit_small"
    """One of the official encoders."""
    encoder: EncoderSize | None = None
    """An encoder of any size; replaces model_name."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth of the last block, linear from 0 at the first."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware is fast at it, fp32 official."""
    checkpoint_activations: bool = False
    """Compute the blocks' activations again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the encoder's blocks: faster steps, but the first takes half a minute or more."""
    shard: bool = False
    """Share weights, gradients and moments out over the processes: less memory, more traffic."""
    seed: Seed = 0
    """Seed of every random draw."""
    load_checkpoint: bool = False
    """Continue from a checkpoint."""
    read_checkpoint: PathOrEmpty | None = None
    """File name of that checkpoint in logging.folder; null takes the latest."""
    allow_batch_change: bool = False
    """Continue a run with another global batch, at the same share of its epoch."""
    init_from: PathText | None = None
    """File of weights to start from, with a fresh optimizer."""
    copy_data: bool = False
    """Copy data.root_path/image_folder, a folder or a tar file, to data.scratch before training."""

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
    def vit_size(self) -> sizes.EncoderSize:
        """The size of the Vision Transformer, named or not."""
        if self.encoder:
            return self.encoder.size
        assert self.model_name
        return ENCODERS[self.model_name]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; the stride of a convolutional stem."""
        return self.vit_size.stride

    def grid(self, size: int) -> int:
        """Count the patches along one side of a square view of `size` pixels."""
        if self.model_name in CONV_STEMS:
            size += self.patch_size - 1
        return size // self.patch_size
