"""Pre-trained weights: reading them, and the architecture that their shapes tell.

Official files, which hold nothing but weights, and checkpoints of this project, which hold their
config too, give the same: an encoder without its projection head.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msn.config.sections.meta import official_name
from msn.models.encoder import (
    CONV_STEM_STRIDE,
    ENCODERS,
    EncoderSize,
    VisionTransformer,
    build_encoder,
)
from msn.runtime import checkpoint
from msn.runtime.errors import UserError

State = dict[str, Tensor]
HEAD_WIDTH = 64  # of each attention head in all named models but deit_huge
IMAGENET_SIDE = 224
KEYS = {"target": "target_encoder", "anchor": "encoder"}


class Architecture(NamedTuple):
    """What it takes to build the encoder that some weights fit."""

    size: EncoderSize
    in_chans: int
    image_size: int  # px, the side that the position embeddings are stored for

    def build(self) -> VisionTransformer:
        """An encoder of this architecture, with random weights and without head."""
        return build_encoder(self.size, image_size=self.image_size, in_chans=self.in_chans)


class Pretrained(NamedTuple):
    """An encoder's weights as they lie in a file.

    Attributes:
        path: of the file.
        weights: official names without prefix, the projection head left out.
        architecture: that they fit.
        config: of the run that made them, or empty: official files have none.
        mean, std: that its images were normalised with, one number for each channel, or None.
    """

    path: Path
    weights: State
    architecture: Architecture
    config: dict[str, Any]
    mean: list[float] | None
    std: list[float] | None

    def encoder(self) -> VisionTransformer:
        """The encoder with these weights, on the CPU.

        Raises:
            UserError: the weights do not fit the architecture that their shapes suggest.
        """
        encoder = self.architecture.build()
        checkpoint.load_weights(encoder, self.weights, path=self.path, key="encoder")
        return encoder


def digest(weights: State) -> str:
    """SHA-256 of names, types, shapes and values of weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        result.update(values.view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def read_pretrained(
    path: str | Path, *, encoder: str = "target", model_name: str | None = None
) -> Pretrained:
    """Read an encoder from a checkpoint of this project or of the official code.

    Args:
        path: of the file.
        encoder: "target", or "anchor" for the trained one, of which it is the average.
        model_name: one of `ENCODERS` if the weights have to be of that; None takes what they are.

    Raises:
        UserError: the file cannot be read, has no such encoder, or is of another model.
    """
    path = Path(path)
    state = checkpoint.load(path, KEYS[encoder])
    found = checkpoint.state_dict(state[KEYS[encoder]], f"{path}: '{KEYS[encoder]}'")
    weights = {name: tensor for name, tensor in found.items() if not name.startswith("fc.")}
    config = state["config"] if isinstance(state.get("config"), dict) else {}
    architecture = infer_architecture(weights, config, path=path, num_heads=state.get("num_heads"))
    if model_name:
        require_model(architecture.size, model_name, path)
    return Pretrained(path, weights, architecture, config, state.get("mean"), state.get("std"))


def infer_architecture(
    weights: State,
    config: dict[str, Any] | None = None,
    *,
    path: Path,
    num_heads: int | None = None,
) -> Architecture:
    """The architecture of a state dict with official names and no prefix.

    Shapes tell everything but the number of heads: that is `num_heads`, else the config's (as in
    our checkpoints), else of the official model of these sizes, else one head for each 64 of the
    width.

    Raises:
        UserError: these are not the weights of a Vision Transformer, or of no known number of
            heads.
    """
    try:
        stem = weights.get("patch_embed.stem.0.weight")
        first = weights["patch_embed.proj.weight"] if stem is None else stem
        patch_size = first.shape[-1] if stem is None else None
        width = weights["cls_token"].shape[-1]
        patches = weights["pos_embed"].shape[1] - 1
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        mlp_ratio = hidden / width
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: not the weights of a Vision Transformer with official names (no {error});"
            " give a checkpoint of pre-training"
        ) from None
    if int(width * mlp_ratio) != hidden:  # a quotient rounded down would lose a unit
        mlp_ratio = (hidden + 0.5) / width
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in weights)
    depth = 1 + max(int(match[1]) for match in blocks if match)
    size = EncoderSize(patch_size, width, depth, 0, mlp_ratio)
    heads = num_heads or _heads(size, config or {}, path)
    rows = math.isqrt(patches)
    if rows * rows != patches:
        raise UserError(f"{path}: pos_embed is for {patches} patches, which are no square")
    stride = patch_size or CONV_STEM_STRIDE
    # 224 px lose a border where the patch does not divide them, and give the same grid.
    side = IMAGENET_SIDE if IMAGENET_SIDE // stride == rows else rows * stride
    return Architecture(size._replace(num_heads=heads), in_chans=first.shape[1], image_size=side)


def official_names(size: EncoderSize) -> list[str]:
    """The official models of this size; two of them are the same, and most sizes have none."""
    return [name for name, known in ENCODERS.items() if known == size]


def _heads(size: EncoderSize, config: dict[str, Any], path: Path) -> int:
    meta = config.get("meta") or {}
    if meta.get("encoder"):
        return int(meta["encoder"]["num_heads"])
    if meta.get("model_name") in ENCODERS:
        return ENCODERS[meta["model_name"]].num_heads
    for known in ENCODERS.values():
        if known._replace(num_heads=0) == size:
            return known.num_heads
    if size.embed_dim % HEAD_WIDTH:
        raise UserError(
            f"{path}: {size.embed_dim} wide and {size.depth} deep is no official model, and the"
            " file does not tell the number of heads; give --num-heads, or a checkpoint of `msn`"
        )
    return size.embed_dim // HEAD_WIDTH


def require_model(size: EncoderSize, name: str, path: Path) -> None:
    """Refuse weights that are not of an official model.

    Raises:
        UserError: there is no such model, or the weights are of another one.
    """
    given, name = name, official_name(name)
    if name not in ENCODERS:
        raise UserError(f"--model-name {given}: not a model; known are {', '.join(ENCODERS)}")
    if ENCODERS[name] == size:
        return
    patch = f"patch {size.patch_size}" if size.patch_size else "a convolutional stem"
    shapes = f"width {size.embed_dim}, depth {size.depth}, {size.num_heads} heads, {patch}"
    actual = " or ".join(official_names(size))
    remedy = f"give --model-name {actual}" if actual else "leave --model-name out"
    raise UserError(
        f"{path}: the weights are of {actual or 'another model'} ({shapes}), not of {given};"
        f" {remedy}, or other weights"
    )
