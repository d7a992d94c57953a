"""Infer the architecture of an encoder from the shapes of its weights."""

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from msn.config.sections.meta import official_name
from msn.config.sizes import CONV_STEM_STRIDE, ENCODERS, RESNETS, EncoderSize, ResNetSize
from msn.interop import resnets
from msn.models.encoder import Encoder
from msn.models.vit import build_encoder
from msn.runtime import checkpoint
from msn.runtime.errors import UserError

if TYPE_CHECKING:
    from msn.models.beit import BeitForm

State = dict[str, Tensor]
TABLE = "relative_position_bias_table"
EXTRA = 3  # rows of a table behind those of pairs of patches
HEAD_WIDTH = 64  # of each attention head in all named models but deit_huge
IMAGENET_SIDE = 224
MAX_SIDE = 2**14  # px
MAX_DEPTH = 1000
KNOWN: dict[str, EncoderSize | ResNetSize] = {**ENCODERS, **RESNETS}


class Architecture(NamedTuple):
    """What it takes to build the encoder that some weights fit."""

    size: EncoderSize | ResNetSize
    in_chans: int
    image_size: int  # px, the side that position embeddings are stored for, or that is usual
    form: "BeitForm | None" = None  # of a ViT with relative position biases, as SimMIM has it

    def build(self, head: nn.Module | None = None) -> Encoder:
        """Build an encoder of this architecture, with random weights.

        Only a plain ViT takes a head.
        """
        size, side, channels = self.size, self.image_size, self.in_chans
        if isinstance(size, ResNetSize):
            from msn.models.resnet import ResNet  # loads timm's ResNets, which few need

            return ResNet(size, in_chans=channels)
        if self.form:
            from msn.models.beit import Beit

            return Beit(size, self.form, image_size=side, in_chans=channels)
        return build_encoder(size, image_size=side, in_chans=channels, head=head)


def digest(weights: State) -> str:
    """Compute the SHA-256 of the names, types, shapes and values of weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        result.update(values.view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def infer_architecture(
    weights: State,
    config: dict[str, Any] | None = None,
    *,
    path: Path,
    num_heads: int | None = None,
) -> Architecture:
    """Infer the architecture of a state dict with official names and no prefix.

    Shapes tell everything but the number of heads: that is `num_heads`, else the config's (as in
    our checkpoints), else of the official model of these sizes, else one head for each 64 of the
    width.

    A ResNet has torchvision's names, and takes images of any size.

    Raises:
        UserError: these are not the weights of a Vision Transformer or a ResNet, or of no known
            number of heads.
    """
    if resnets.is_resnet(weights):
        return Architecture(*resnets.infer_size(weights, path), IMAGENET_SIDE)
    stem = weights.get("patch_embed.stem.0.weight")
    first = _part(weights, f"patch_embed.{'proj' if stem is None else 'stem.0'}.weight", 4, path)
    width = _part(weights, "cls_token", 3, path).shape[-1]
    form, heads = _beit_form(weights, path)
    num_heads = heads or num_heads
    patches = _patches(weights, path)
    hidden = _part(weights, "blocks.0.mlp.fc1.weight", 2, path).shape[0]
    patch_size = first.shape[-1] if stem is None else None
    mlp_ratio = hidden / width
    if int(width * mlp_ratio) != hidden:  # a quotient rounded down would lose a unit
        mlp_ratio = (hidden + 0.5) / width
    size = EncoderSize(patch_size, width, _depth(weights, path), 0, mlp_ratio)
    meta = section(config or {}, "meta", path)
    if num_heads is None:
        num_heads = _heads(size, meta, path)
    rows, stride = math.isqrt(patches), patch_size or CONV_STEM_STRIDE
    # 224 px lose a border where the patch does not divide them, and give the same grid.
    side = IMAGENET_SIDE if IMAGENET_SIDE // stride == rows else rows * stride
    if rows * rows != patches or not 0 < side <= MAX_SIDE:
        raise UserError(
            f"{path}: pos_embed is for {patches} patches of {stride} px; they must form a square"
            f" of at most {MAX_SIDE} px; check that the file is whole"
        )
    if type(num_heads) is not int or num_heads < 1 or width % num_heads:
        raise UserError(
            f"{path}: {checkpoint.shown(num_heads)} attention heads do not divide the width"
            f" {width}; give the number that it was trained with (--num-heads)"
        )
    size = size._replace(num_heads=num_heads)
    return Architecture(size, first.shape[1], image_size=side, form=form)


def _tables(weights: State) -> list[Tensor]:
    return [tensor for name, tensor in weights.items() if name.endswith(TABLE)]


def _beit_form(weights: State, path: Path) -> "tuple[BeitForm | None, int | None]":
    """Find what a ViT of SimMIM is made of, and its heads, which the tables tell."""
    tables = _tables(weights)
    if not tables and "blocks.0.attn.q_bias" not in weights:
        return None, None
    from msn.models.beit import BeitForm

    name, scale = f"blocks.0.attn.{TABLE}", "blocks.0.gamma_1"
    form = BeitForm(
        shared_bias=f"rel_pos_bias.{TABLE}" in weights,
        block_bias=name in weights,
        absolute="pos_embed" in weights,
        layer_scale=BeitForm().layer_scale if scale in weights else None,
        qkv_bias="blocks.0.attn.q_bias" in weights,
        final_norm="norm.weight" in weights,
    )
    if any(table.ndim != 2 or not table.shape[1] for table in tables):
        raise UserError(f"{path}: {TABLE} must have two axes; check that the file is whole")
    return form, tables[0].shape[1] if tables else None


def _patches(weights: State, path: Path) -> int:
    """Count the patches that positions, or tables of relative ones, are stored for."""
    tables = _tables(weights)
    if "pos_embed" in weights or not tables:
        return _part(weights, "pos_embed", 3, path).shape[1] - 1
    pairs = max(0, len(tables[0]) - EXTRA)
    side = (math.isqrt(pairs) + 1) // 2
    if pairs != (2 * side - 1) ** 2:
        raise UserError(
            f"{path}: {TABLE} has {len(tables[0])} rows, which is that of no square of patches;"
            " check that the file is whole"
        )
    return side**2


def _part(weights: State, name: str, axes: int, path: Path) -> Tensor:
    """Give a tensor that every Vision Transformer has, after checking its number of axes."""
    if name not in weights:
        raise UserError(
            f"{path}: not the weights of a Vision Transformer with official names (no '{name}'),"
            " nor of a plain ResNet; give a checkpoint of pre-training"
        )
    tensor = weights[name]
    if tensor.ndim != axes or 0 in tensor.shape:
        raise UserError(
            f"{path}: {name} has the shape {tuple(tensor.shape)}, must have {axes} axes and none"
            " of them empty; check that the file is whole and of a Vision Transformer"
        )
    return tensor


def _depth(weights: State, path: Path) -> int:
    """Count the blocks, which must be numbered from 0 without a gap."""
    found = (re.match(r"blocks\.(0|[1-9]\d{0,3})\.", name) for name in weights)
    numbers = {int(match[1]) for match in found if match}
    depth = 1 + max(numbers)
    if depth > MAX_DEPTH or len(numbers) < depth:
        raise UserError(
            f"{path}: has {len(numbers)} blocks with numbers to {depth - 1}; they must be numbered"
            f" from 0 without a gap, {MAX_DEPTH} at most; check that the file is whole"
        )
    return depth


def official_names(size: EncoderSize | ResNetSize) -> list[str]:
    """List the names of the known models of this size; most sizes have none."""
    return [name for name, known in KNOWN.items() if known == size]


def _heads(size: EncoderSize, meta: dict[str, Any], path: Path) -> Any:
    if encoder := section(meta, "encoder", path):
        return encoder.get("num_heads")
    name = meta.get("model_name")
    if isinstance(name, str) and name in ENCODERS:
        return ENCODERS[name].num_heads
    for known in ENCODERS.values():
        if known._replace(num_heads=0) == size:
            return known.num_heads
    if size.embed_dim % HEAD_WIDTH:
        raise UserError(
            f"{path}: {size.embed_dim} wide and {size.depth} deep is no official model, and the"
            " file does not tell the number of heads; give --num-heads (of msn import), or a"
            " checkpoint of `msn`"
        )
    return size.embed_dim // HEAD_WIDTH


def section(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Read a mapping among the values that a file holds; where it is missing, give an empty one.

    Raises:
        UserError: it is something else.
    """
    found = values.get(key)
    if found is not None and not isinstance(found, dict):
        raise UserError(
            f"{path}: {key} is {checkpoint.shown(found)}, must be a mapping; check the file"
        )
    return found or {}


def require_model(size: EncoderSize | ResNetSize, name: str, path: Path) -> None:
    """Refuse weights that are not of the official model that is named.

    Raises:
        UserError: there is no such model, or the weights are of another one.
    """
    given, name = name, official_name(name)
    if name not in KNOWN:
        raise UserError(f"--model-name {given}: not a model; known are {', '.join(KNOWN)}")
    if KNOWN[name] == size:
        return
    actual = " or ".join(official_names(size))
    remedy = f"give the name {actual}" if actual else "leave the name out"
    raise UserError(
        f"{path}: the weights are of {actual or 'another model'} ({size.description}), not of"
        f" {given}; {remedy} (--model-name, meta.model_name), or other weights"
    )
