"""What predicts pixels beside an encoder: MAE's decoder, or SimMIM's mask token and layer."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from msn.config.sections.mae import MAECriterion
from msn.config.sizes import EncoderSize
from msn.interop import valid
from msn.interop.architecture import Architecture, section
from msn.runtime import checkpoint
from msn.runtime.checkpoint import listed
from msn.runtime.errors import UserError

Tensors = dict[str, Tensor]
KEYS = ("mask", "decoder")
MASK_TOKEN, DECODER = "mask_token", "decoder_"
UNSEEN = ("mask_ratio", "norm_pix_loss", "decoder_heads")
"""What shapes do not tell of a decoder of MAE, by the names of the config."""


class Pixels(NamedTuple):
    """The part of MAE or SimMIM with a ViT that an encoder alone is without.

    Attributes:
        parts: tensors by name, by their key in the checkpoint of a run: `decoder`, of SimMIM also
            `mask`.
        mae: size, masks and target of MAE's decoder; None for SimMIM.
    """

    parts: dict[str, Tensors]
    mae: MAECriterion | None = None

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        if self.mae is None:
            return "SimMIM's mask token and decoder"
        return f"MAE's decoder (width {self.mae.decoder_dim}, depth {self.mae.decoder_depth})"


def find(
    parts: Mapping[str, Any], architecture: Architecture, said: Mapping[str, Any], path: Path
) -> Pixels | None:
    """Find what predicts pixels among the parts of a checkpoint; give None if nothing does.

    Parts of another method, or of another encoder, are none either.

    Args:
        parts: those of `KEYS` that there are, each a state dict.
        architecture: of the encoder beside them.
        said: what else is known, by the names of the config's `criterion` section.
        path: where they were read, for errors.

    Raises:
        UserError: their numbers or what is said of them cannot be.
    """
    size = architecture.size
    if "decoder" not in parts or not isinstance(size, EncoderSize) or size.patch_size is None:
        return None
    given = {key: valid.dense(parts[key], f"{path}: '{key}'") for key in KEYS if key in parts}
    values, mae = architecture.in_chans * size.patch_size**2, None
    if "mask" in given:
        expected = _of_simmim(size.embed_dim, values)
    else:
        mae = _criterion(given["decoder"], said, path)
        if mae is None or mae.decoder_dim % mae.decoder_heads:
            return None
        expected = {"decoder": _of_mae(mae, architecture, values)}
    if any(checkpoint.differences(given[key], expected[key]) for key in expected):
        return None
    if problems := [text for key in expected for text in valid.unlike(given[key], expected[key])]:
        raise UserError(
            f"{path}: its decoder cannot be used: {listed(problems)}; take another file"
        )
    return Pixels(given, mae)


def said_of(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Collect what a file says of its decoder: options of the official code, a config, or ours."""
    options = state.get("args")
    found: dict[str, Any] = dict(vars(options)) if isinstance(options, SimpleNamespace) else {}
    if isinstance(state.get("config"), dict):
        found |= section(section(dict(state), "config", path), "criterion", path)
    return found | section(dict(state), "criterion", path)


def from_official(tensors: Tensors) -> dict[str, Tensors]:
    """Pick the parts out of the tensors of a model, by the official names of MAE and SimMIM."""
    if f"{DECODER}embed.weight" in tensors:
        decoder = {
            name.removeprefix(DECODER): tensor
            for name, tensor in tensors.items()
            if name == MASK_TOKEN or name.startswith(DECODER)
        }
        return {"decoder": decoder}
    names = {"0.weight": "decoder.0.weight", "0.bias": "decoder.0.bias"}
    if not {f"encoder.{MASK_TOKEN}", *names.values()} <= tensors.keys():
        return {}
    return {
        "mask": {MASK_TOKEN: tensors[f"encoder.{MASK_TOKEN}"]},
        "decoder": {ours: tensors[theirs] for ours, theirs in names.items()},
    }


def to_official(encoder: Tensors, pixels: Pixels, side: int) -> Tensors:
    """Name the tensors of a whole model as the official code of MAE or SimMIM does.

    Args:
        encoder: by official name, without a head.
        pixels: beside it.
        side: of the square grid of patches, which relative positions are looked up for.
    """
    decoder = pixels.parts["decoder"]
    if pixels.mae:
        named = {n if n == MASK_TOKEN else DECODER + n: t for n, t in decoder.items()}
        return encoder | named
    whole = {f"encoder.{n}": t for n, t in (pixels.parts["mask"] | encoder).items()}
    tables = [name for name in whole if name.endswith("relative_position_bias_table")]
    if tables:
        from msn.models.beit import pair_rows  # loads timm

        index = pair_rows((side, side), torch.device("cpu"))
        whole |= {name.replace("bias_table", "index"): index for name in tables}
    return whole | {f"decoder.{name}": tensor for name, tensor in decoder.items()}


def _criterion(decoder: Tensors, said: Mapping[str, Any], path: Path) -> MAECriterion | None:
    """Describe a decoder of MAE; give None if it is none."""
    embed = decoder.get("embed.weight")
    blocks = {m[1] for name in decoder if (m := re.match(r"blocks\.(\d{1,3})\.", name))}
    if embed is None or embed.ndim != 2 or len(embed) % 4 or not blocks:
        return None
    known = {name: said[name] for name in UNSEEN if name in said}
    if known.get("mask_ratio") in (0, 1):  # set for features alone; no training has it
        del known["mask_ratio"]
    try:
        return MAECriterion(decoder_dim=len(embed), decoder_depth=len(blocks), **known)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))} of its decoder: {first['msg']};"
            " check the file"
        ) from None


def _of_simmim(width: int, values: int) -> dict[str, Tensors]:
    with torch.device("meta"):
        layer = {"0.weight": torch.empty(values, width, 1, 1), "0.bias": torch.empty(values)}
        return {"mask": {MASK_TOKEN: torch.empty(1, 1, width)}, "decoder": layer}


def _of_mae(mae: MAECriterion, architecture: Architecture, values: int) -> Tensors:
    from msn.models.mae_decoder import Decoder  # loads timm

    side = architecture.size.grid(architecture.image_size)
    with torch.device("meta"):
        return Decoder(
            architecture.size.embed_dim,
            (side, side),
            values,
            embed_dim=mae.decoder_dim,
            depth=mae.decoder_depth,
            num_heads=mae.decoder_heads,
        ).state_dict()
