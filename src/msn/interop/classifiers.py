"""Fine-tuned checkpoints and linear heads as part of an encoder's weights.

MSN's linear evaluation reads the class token before the final norm through a norm of its own. That
norm takes the place of the encoder's, so that encoder and linear layer together give the same
logits. (Its epsilon is 1e-5, the encoder's 1e-6: a relative 5e-6 / variance of the token.) MAE's
reads it behind the final norm, through a BatchNorm that becomes part of the linear layer.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from msn.interop import valid
from msn.interop.architecture import digest, section
from msn.interop.official import normalization_of
from msn.interop.weights import Classifier, Tensors, Weights, weights_from
from msn.models.linear import BATCH_NORM_EPS
from msn.runtime import checkpoint
from msn.runtime.checkpoint import CLASSIFIER
from msn.runtime.errors import UserError


def finetuned(state: dict[str, Any], *, path: Path, num_heads: int | None = None) -> Weights:
    """Read encoder and classifier of a fine-tuning, from its averaged weights if it kept them.

    Raises:
        UserError: it is of a linear evaluation, or reads averaged patches.
    """
    key = "average" if "average" in state else CLASSIFIER
    tensors = valid.dense(state[key], f"{path}: '{key}'")
    if not {"head.weight", "head.bias"} <= tensors.keys():
        raise UserError(
            f"{path}: holds linear classifiers without an encoder; export the weights that they"
            f" were trained on, with --head {path.name}"
        )
    config = section(state, "config", path)
    pool = state.get("pool", section(config, "meta", path).get("pool"))
    if pool == "patches" and "encoder.cls_token" in tensors:
        raise UserError(
            f"{path}: its classifier reads averaged patches, the forms to export to read the class"
            " token; fine-tune with meta.pool=cls"
        )
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in tensors.items()
        if not name.startswith("head.")
    }
    return weights_from(
        encoder,
        path=path,
        num_heads=state.get("num_heads") if num_heads is None else num_heads,
        classifier=Classifier(tensors["head.weight"], tensors["head.bias"]),
        normalization=normalization_of(state, path),
    )


def with_linear_head(weights: Weights, path: Path) -> Weights:
    """Add to an encoder's weights the most accurate classifier of a linear evaluation on them.

    Raises:
        UserError: the file is of no linear evaluation, or was trained on another encoder; or the
            classifier sees more than the last block.
    """
    state = checkpoint.load(path, CLASSIFIER)
    tensors = valid.dense(state[CLASSIFIER], f"{path}: '{CLASSIFIER}'")
    if digest(weights.encoder) != state.get("weights"):
        raise UserError(f"{path}: was trained on another encoder; give the one that it was for")
    number = _best(state, path)
    prefix = f"heads.{number}."
    parts = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if not {"linear.weight", "linear.bias"} <= parts.keys():
        raise UserError(f"{path}: not of a linear evaluation, it has no heads.{number}")
    if parts["linear.weight"].shape[1:] != (weights.architecture.size.embed_dim,):
        raise UserError(
            f"{path}: its best classifier (number {number + 1}) sees several blocks, the forms to"
            " export to see the last; evaluate with optimization.num_blocks=1"
        )
    norm: Tensors = {}
    if "norm.running_var" in parts:
        classifier = _without_batch_norm(parts)
    elif "norm.weight" in weights.encoder:
        norm = {name: tensor for name, tensor in parts.items() if name.startswith("norm.")}
        settings = section(section(state, "config", path), "optimization", path)
        unit_length = settings.get("normalize") is not False
        classifier = Classifier(parts["linear.weight"], parts["linear.bias"], unit_length)
    else:
        raise UserError(
            f"{path}: this linear classifier normalizes features first, for which a ResNet has no"
            " place; evaluate with meta.protocol=mae, or fine-tune with meta.trained_blocks"
        )
    return weights_from(
        weights.encoder | norm | weights.head,
        path=path,
        num_heads=weights.architecture.size.num_heads,
        prototypes=weights.prototypes,
        classifier=classifier,
        normalization=weights.stated,
        config=weights.config,
    )


def without_unit_length(weights: Weights, where: Path) -> Weights:
    """Fold the scaling of tokens to length 1 into the linear layer, which keeps the logits.

    That is possible where the final norm scales all features alike and adds nothing: every token
    has the same length then, the square root of the width.

    Raises:
        UserError: it is not possible; `where` was to be written.
    """
    classifier = weights.classifier
    if classifier is None or not classifier.unit_length:
        return weights
    scale, shift = weights.encoder["norm.weight"], weights.encoder["norm.bias"]
    if not torch.equal(scale, scale[:1].expand_as(scale)) or shift.any():
        raise UserError(
            f"{where}: this classifier scales each token to length 1 behind a norm that it has"
            " learned, which a single linear layer cannot do; export it to onnx or torch with"
            " --tap logits, or evaluate with optimization.normalize=false"
        )
    length = math.sqrt(len(scale)) * float(scale[0].sign())
    norm = {"norm.weight": torch.ones_like(scale), "norm.bias": shift}
    folded = Classifier(classifier.weight / length, classifier.bias)
    return replace(weights, encoder=weights.encoder | norm, classifier=folded)


def _without_batch_norm(parts: Tensors) -> Classifier:
    """Fold a BatchNorm without weights into the linear layer behind it."""
    scale = (parts["norm.running_var"] + BATCH_NORM_EPS).rsqrt()
    weight = parts["linear.weight"] * scale
    return Classifier(weight, parts["linear.bias"] - weight @ parts["norm.running_mean"])


def _best(state: dict[str, Any], path: Path) -> int:
    """Give the number of the classifier that was most accurate after the file's last epoch."""
    epochs = state.get("accuracy")
    if not epochs:
        raise UserError(f"{path}: no epoch is finished in it; give a later checkpoint")
    try:
        top1 = [float(score[0]) for score in epochs[-1]]
        return top1.index(max(top1))
    except (TypeError, ValueError, LookupError):
        raise UserError(f"{path}: 'accuracy' is no list of scores; check the file") from None
