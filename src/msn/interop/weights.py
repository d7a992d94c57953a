"""The form that all others are read into and written from: tensors under the official names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from msn.data.normalisation import Normalisation, imagenet_normalisation
from msn.interop.pretrained import Architecture, infer_architecture
from msn.models.encoder import VisionTransformer, build_encoder
from msn.models.head import projection_head
from msn.runtime.checkpoint import differences
from msn.runtime.errors import UserError

Tensors = dict[str, Tensor]
HEAD = "fc."


class Classifier(NamedTuple):
    """A linear layer on the normalised class token: weight (K, D), bias (K,).

    With `unit_length` the token is scaled to length 1 before it.
    """

    weight: Tensor
    bias: Tensor
    unit_length: bool = False

    def tensors(self) -> Tensors:
        """Weight and bias by name."""
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True)
class Weights:
    """An encoder and what was saved with it.

    Attributes:
        architecture: of the encoder.
        normalisation: of its images.
        encoder: tensors by official name, without the head.
        head: tensors of the projection head (`fc.*`), none where it was not kept.
        prototypes: (K, out_dim), None where they were not kept.
        classifier: of a fine-tuned model, or a linear one on frozen features.
    """

    architecture: Architecture
    normalisation: Normalisation
    encoder: Tensors
    head: Tensors = field(default_factory=dict)
    prototypes: Tensor | None = None
    classifier: Classifier | None = None

    def build(self) -> VisionTransformer:
        """The encoder, with its head if there is one, in evaluation mode."""
        encoder = _without_values(self.architecture, self.head)
        encoder.load_state_dict(self.encoder | self.head, assign=True)
        return encoder.requires_grad_(False).eval()


def weights_from(
    tensors: Tensors,
    *,
    path: Path,
    num_heads: int | None = None,
    prototypes: Tensor | None = None,
    classifier: Classifier | None = None,
    normalisation: Normalisation | None = None,
) -> Weights:
    """Weights from the tensors of an encoder in official names, with or without its head.

    Args:
        tensors: by name.
        path: where they were read, for errors.
        num_heads: attention heads, which the tensors do not tell; None takes those of the official
            encoder of this size.
        prototypes: passed on.
        classifier: passed on.
        normalisation: of the images; None takes ImageNet's.

    Raises:
        UserError: the tensors are not those of an encoder: all that is wrong is listed; or the
            number of heads is not known.
    """
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if len(head) == len(tensors):
        raise UserError(f"{path}: holds a projection head without an encoder; give both")
    architecture = infer_architecture(tensors, path=path, num_heads=num_heads)
    if architecture.size.embed_dim % architecture.size.num_heads:
        raise UserError(
            f"{path}: {architecture.size.num_heads} attention heads do not divide the width"
            f" {architecture.size.embed_dim}; give the number that it was trained with"
        )
    encoder = {name: tensor for name, tensor in tensors.items() if name not in head}
    problems = differences(tensors, _without_values(architecture, head).state_dict())
    if problems:
        size = architecture.size
        raise UserError(
            f"{path}: not the tensors of a ViT of width {size.embed_dim} and depth {size.depth}:"
            f" {'; '.join(problems)}; check that the file is whole and of such an encoder"
        )
    return Weights(
        architecture=architecture,
        normalisation=normalisation or imagenet_normalisation(architecture.in_chans),
        encoder=encoder,
        head=head,
        prototypes=prototypes,
        classifier=classifier,
    )


def _without_values(architecture: Architecture, head: Tensors) -> VisionTransformer:
    """The encoder on the meta device, with a head as its tensors have it."""
    with torch.device("meta"):
        fc = None
        if {HEAD + "fc1.weight", HEAD + "fc3.weight"} <= head.keys():
            hidden, out = (head[HEAD + name].shape[0] for name in ("fc1.weight", "fc3.weight"))
            batch_norm = any(name.startswith(HEAD + "bn") for name in head)
            width = architecture.size.embed_dim
            fc = projection_head(width, hidden, out, batch_norm=batch_norm)
        size, side, channels = architecture.size, architecture.image_size, architecture.in_chans
        return build_encoder(size, image_size=side, in_chans=channels, head=fc)
