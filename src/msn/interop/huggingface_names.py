"""Names of a ViT's tensors in transformers, of either major version, and of ViTMAE's decoder."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from msn.runtime.errors import UserError

Tensors = dict[str, Tensor]
ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
DECODER = {
    "mask_token": "mask_token",
    "pos_embed": "decoder_pos_embed",
    "embed": "decoder_embed",
    "norm": "decoder_norm",
    "pred": "decoder_pred",
}
"""Our names outside of blocks, and those of transformers."""
STACKS = ("encoder.layer", "decoder_layers", "layers", "decoder_encoder.layer")
"""What blocks are called: of encoder and decoder in version 4, which 5 reads, too; then in 5."""
BLOCK_4 = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
BLOCK_5 = {
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Official names within a block and those of transformers, which splits query, key and value; of
version 5 where they differ."""
OURS = {theirs: ours for names in (BLOCK_4, BLOCK_5) for ours, theirs in names.items()}


def to_huggingface(tensors: Tensors, outer: Mapping[str, str] = ENCODER) -> Tensors:
    """Rename the tensors of an encoder without head, or of MAE's decoder, as transformers 4 does.

    Args:
        tensors: by official name.
        outer: `ENCODER` or `DECODER`.
    """
    stack, renamed = STACKS[outer is DECODER], {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+?)(?:\.(weight|bias))?", name)
        if not block:
            renamed[_outer(name, outer)] = tensor
            continue
        number, part, kind = block.groups()
        if part == "attn.qkv":
            for third, values in zip("qkv", tensor.chunk(3), strict=True):
                theirs = f"{stack}.{number}.{BLOCK_4[f'attn.{third}']}.{kind}"
                renamed[theirs] = values.contiguous()
        else:
            renamed[f"{stack}.{number}.{BLOCK_4[part]}.{kind}"] = tensor
    return renamed


def from_huggingface(tensors: Tensors, path: Path, outer: Mapping[str, str] = ENCODER) -> Tensors:
    """Rename tensors of transformers 4 or 5 to the official names.

    Unknown names stay as they are.

    Args:
        tensors: of an encoder or of ViTMAE's decoder, without the prefix of either.
        path: named by an error.
        outer: `ENCODER` or `DECODER`.

    Raises:
        UserError: queries, keys and values of a block are not of one shape.
    """
    renamed: Tensors = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    names = {theirs: ours for ours, theirs in outer.items()}
    stacks = "|".join(map(re.escape, STACKS))
    for name, tensor in tensors.items():
        block = re.fullmatch(rf"(?:{stacks})\.(\d+)\.(.+)\.(weight|bias)", name)
        if not block:
            renamed[_outer(name, names)] = tensor
            continue
        number, part, kind = block.groups()
        ours = OURS.get(part)
        if ours is None:
            renamed[name] = tensor
        elif ours in ("attn.q", "attn.k", "attn.v"):
            thirds.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[ours] = tensor
        else:
            renamed[f"blocks.{number}.{ours}.{kind}"] = tensor
    return renamed | _joined(thirds, path)


def _joined(thirds: Mapping[str, Mapping[str, Tensor]], path: Path) -> Tensors:
    """Join query, key and value of each block; one of which a third is missing is left out."""
    joined = {}
    for name, parts in thirds.items():
        shapes = {(tuple(part.shape), part.dtype) for part in parts.values()}
        if len(shapes) > 1 or () in dict(shapes):
            raise UserError(
                f"{path}: {name}: query, key and value have the shapes"
                f" {', '.join(str(shape) for shape, _ in shapes)}, must be one; download the folder"
                " again"
            )
        if len(parts) == 3:  # else it is missing, and said to be
            joined[name] = torch.cat([parts[f"attn.{third}"] for third in "qkv"])
    return joined


def _outer(name: str, names: Mapping[str, str]) -> str:
    """Translate a name outside the blocks: all of it, or what is before `.weight` or `.bias`."""
    stem, _, kind = name.rpartition(".")
    return names.get(name) or (f"{names[stem]}.{kind}" if stem in names else name)
