"""Checkpoint files of the official code, the released ones, and those of this project."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from msn.data.normalisation import Normalisation
from msn.interop.pretrained import KEYS
from msn.interop.weights import Weights, weights_from
from msn.runtime import checkpoint
from msn.runtime.errors import UserError

Which = Literal["target", "anchor"]


def read(path: Path, *, which: Which = "target", num_heads: int | None = None) -> Weights:
    """Read an encoder, with head and prototypes, from a checkpoint of MSN.

    Args:
        path: a file of the official code or of this project, with or without `module.` prefixes.
        which: the target encoder, or the anchor where the file has it.
        num_heads: attention heads, where neither the file nor the encoder's size tells.

    Raises:
        UserError: no such file, damaged, holding code, or not of such an encoder.
    """
    return from_state(checkpoint.load(path), path=path, which=which, num_heads=num_heads)


def from_state(
    state: dict[str, Any], *, path: Path, which: Which = "target", num_heads: int | None = None
) -> Weights:
    """The same of what such a file holds; `path` is for errors."""
    key = KEYS[which]
    if key not in state:
        raise UserError(f"{path}: has no '{key}', like the released files; take the target encoder")
    return weights_from(
        checkpoint.state_dict(state[key], f"{path}: '{key}'"),
        path=path,
        num_heads=num_heads or _recorded_heads(state),
        prototypes=_prototypes(state, path),
        normalisation=normalisation_of(state),
    )


def write(path: Path, weights: Weights) -> None:
    """Write a file like the released ones: target encoder and, where there are, prototypes.

    Tensors stand under the official names, without prefixes. Further keys hold the number of heads,
    which tensors do not tell, and the normalisation.

    Raises:
        UserError: it cannot be written.
    """
    state: dict[str, Any] = {
        "target_encoder": weights.encoder | weights.head,
        "num_heads": weights.architecture.size.num_heads,
        "mean": list(weights.normalisation.mean),
        "std": list(weights.normalisation.std),
    }
    if weights.prototypes is not None:
        state["prototypes"] = weights.prototypes
    checkpoint.save(path, state)


def normalisation_of(state: dict[str, Any]) -> Normalisation | None:
    """What a file of this project says of its images."""
    mean, std = state.get("mean"), state.get("std")
    return Normalisation(tuple(mean), tuple(std)) if mean and std else None


def _prototypes(state: dict[str, Any], path: Path) -> Tensor | None:
    prototypes = state.get("prototypes")
    if prototypes is None:
        return None
    if not torch.is_tensor(prototypes) or prototypes.ndim != 2:
        raise UserError(f"{path}: 'prototypes' is not a matrix (K, out_dim); check the file")
    return prototypes.detach()


def _recorded_heads(state: dict[str, Any]) -> int | None:
    """Attention heads as files of this project record them."""
    if isinstance(heads := state.get("num_heads"), int):
        return heads
    config = state.get("config")
    encoder = config.get("meta", {}).get("encoder") if isinstance(config, dict) else None
    return int(encoder["num_heads"]) if encoder else None
