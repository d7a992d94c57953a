"""Checkpoint files of the official code, the released ones, and those of this project."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from msn.config.sizes import EncoderSize, ResNetSize
from msn.data.normalization import Normalization
from msn.interop import pixels, valid
from msn.interop.architecture import section
from msn.interop.weights import Weights, weights_from
from msn.runtime import checkpoint
from msn.runtime.errors import UserError

Which = Literal["target", "anchor"]
KEYS: dict[Which, str] = {"target": "target_encoder", "anchor": "encoder"}


def from_state(
    state: dict[str, Any], *, path: Path, which: Which = "target", num_heads: int | None = None
) -> Weights:
    """Build an encoder's weights, with head and prototypes, from what a checkpoint of MSN holds.

    Args:
        state: of a file of the official code or of this project, with or without prefixes.
        path: of that file, for errors.
        which: the target encoder, or the anchor where the file has it.
        num_heads: attention heads, where neither the file nor the encoder's size tells.

    Raises:
        UserError: it is not of such an encoder, or something else in it is wrong.
    """
    key = KEYS[which]
    if key not in state:
        raise UserError(f"{path}: has no '{key}', like the released files; take the target encoder")
    weights = weights_from(
        valid.dense(state[key], f"{path}: '{key}'"),
        path=path,
        num_heads=state.get("num_heads") if num_heads is None else num_heads,
        prototypes=state.get("prototypes"),
        normalization=normalization_of(state, path),
        config=section(state, "config", path),
    )
    parts = {key: state[key] for key in pixels.KEYS if isinstance(state.get(key), dict)}
    beside = pixels.find(parts, weights.architecture, pixels.said_of(state, path), path)
    return replace(weights, pixels=beside)


def write(path: Path, weights: Weights) -> None:
    """Write a file like the released ones of MSN, or of MAE or SimMIM if it can predict pixels.

    MSN's holds the target encoder and, if there are any, prototypes; the others' `model` is the
    encoder and what predicts pixels. Tensors stand under the official names, without prefixes.
    Further keys hold the number of heads, which tensors do not tell, the normalization, and what
    is not seen of MAE's decoder. A ResNet's tensors stand under `state_dict`, by torchvision's
    names, with the classifier if there is one.

    Raises:
        UserError: it cannot be written.
    """
    state: dict[str, Any] = {
        "mean": list(weights.normalization.mean),
        "std": list(weights.normalization.std),
    }
    if isinstance(weights.architecture.size, ResNetSize):
        classifier = weights.classifier.tensors() if weights.classifier else {}
        named = {f"fc.{name}": tensor for name, tensor in classifier.items()}
        state["state_dict"] = weights.encoder | named
    else:
        state |= _vit_state(weights, weights.architecture.size)
    if weights.prototypes is not None:
        state["prototypes"] = weights.prototypes
    checkpoint.save(path, state)


def _vit_state(weights: Weights, size: EncoderSize) -> dict[str, Any]:
    state: dict[str, Any] = {"num_heads": size.num_heads}
    if weights.pixels is None:
        return state | {"target_encoder": weights.encoder | weights.head}
    if weights.pixels.mae:
        state["criterion"] = weights.pixels.mae.model_dump(include=set(pixels.UNSEEN))
    side = size.grid(weights.architecture.image_size)
    return state | {"model": pixels.to_official(weights.encoder, weights.pixels, side)}


def normalization_of(state: dict[str, Any], path: Path) -> Normalization | None:
    """Give the normalization that a file of this project states for its images, unchecked."""
    data = section(section(state, "config", path), "data", path)
    for values in (state, data):
        if values.get("mean") is not None and values.get("std") is not None:
            return Normalization(values["mean"], values["std"])
    return None
