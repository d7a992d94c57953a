"""`Weights`: the one form that every format is read into and written from."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msn.config.sections.data import Interpolation
from msn.config.sizes import EncoderSize, ResNetSize
from msn.data.normalization import Normalization, imagenet_normalization
from msn.interop import valid
from msn.interop.architecture import MAX_SIDE, Architecture, infer_architecture, section
from msn.interop.pixels import Pixels
from msn.models.encoder import Encoder
from msn.models.head import projection_head
from msn.runtime.checkpoint import listed, shown
from msn.runtime.errors import UserError

Tensors = dict[str, Tensor]
HEAD = "fc."


class Classifier(NamedTuple):
    """A linear layer on the normalized class token or a ResNet's mean: weight (K, D), bias (K,).

    With `unit_length` the token is scaled to length 1 before it.
    """

    weight: Tensor
    bias: Tensor
    unit_length: bool = False

    def tensors(self) -> Tensors:
        """Give weight and bias by name."""
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True)
class Weights:
    """An encoder and what was saved with it.

    Attributes:
        path: where they were read, for errors.
        architecture: of the encoder.
        encoder: tensors by official name, without the head.
        head: tensors of the projection head (`fc.*`), none where it was not kept.
        prototypes: (K, out_dim), None where they were not kept.
        classifier: of a fine-tuned model, or a linear one on frozen features.
        stated: normalization of its images, where it was saved.
        config: of the run that made them, empty where it was not saved.
        pixels: what predicts pixels from a ViT's tokens, None where it was not kept.
    """

    path: Path
    architecture: Architecture
    encoder: Tensors
    head: Tensors = field(default_factory=dict)
    prototypes: Tensor | None = None
    classifier: Classifier | None = None
    stated: Normalization | None = None
    config: dict[str, Any] = field(default_factory=dict)
    pixels: Pixels | None = None

    @property
    def normalization(self) -> Normalization:
        """Normalization of the encoder's images; ImageNet's, where it was not saved."""
        return self.stated or imagenet_normalization(self.architecture.in_chans)

    @property
    def method(self) -> str | None:
        """Name of the pre-training: the config's, or what the parts beside the encoder tell."""
        stated = section(self.config, "meta", self.path).get("method")
        if isinstance(stated, str):
            return stated
        if self.pixels:
            return "mae" if self.pixels.mae else "simmim"
        return "msn" if self.head or self.prototypes is not None else None

    @property
    def has_idle_class_token(self) -> bool:
        """Whether there is a class token that the loss of the pre-training did not reach."""
        if isinstance(self.architecture.size, ResNetSize):
            return False
        return self.method in ("mae", "simmim") or self.architecture.form is not None

    @property
    def image_size(self) -> int:
        """Side of the training's views, px; without its config, of the position embeddings."""
        data = section(self.config, "data", self.path)
        size = data.get("image_size", data.get("rand_size"))
        return self.architecture.image_size if size is None else size

    @property
    def interpolation(self) -> Interpolation:
        """Filter that the training's crops were resized with; bilinear, where it was not saved."""
        stated = section(self.config, "data", self.path).get("interpolation")
        return "bicubic" if stated == "bicubic" else "bilinear"

    def build(self) -> Encoder:
        """Build the encoder, with its head if there is one, in float32 and in evaluation mode."""
        encoder = _without_values(self.architecture, self.head)
        encoder.load_state_dict(self.encoder | self.head, assign=True)
        return encoder.float().requires_grad_(False).eval()

    def trainable(self) -> Encoder:
        """Build the encoder without its head, in float32, with tensors of its own."""
        encoder = self.architecture.build()
        encoder.load_state_dict(self.encoder)
        return encoder


def weights_from(
    tensors: Tensors,
    *,
    path: Path,
    num_heads: int | None = None,
    prototypes: Tensor | None = None,
    classifier: Classifier | None = None,
    normalization: Normalization | None = None,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> Weights:
    """Build weights from an encoder's tensors in official names, with or without its head.

    Whatever is read passes through here: all of it is checked.

    Args:
        tensors: by name.
        path: where they were read, for errors.
        num_heads: attention heads, which the tensors do not tell; None takes those of the config
            or of the official encoder of this size.
        prototypes: (K, out_dim).
        classifier: on the class token.
        normalization: of the images, where it is known.
        config: of the run that made them, where it is known.
        image_size: side of the images, px, where it is known; positions tell, a ResNet does not.

    Raises:
        UserError: the tensors are not those of an encoder, or other parts do not fit it: what is
            wrong is listed; or the number of heads is not known.
    """
    tensors = valid.dense(tensors, str(path))
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if len(head) == len(tensors):
        raise UserError(f"{path}: holds a projection head without an encoder; give both")
    architecture = infer_architecture(tensors, config, path=path, num_heads=num_heads)
    size, channels = architecture.size, architecture.in_chans
    data = section(config or {}, "data", path)
    side_key = "image_size" if "image_size" in data else "rand_size"
    image_size = data.get(side_key) if image_size is None else image_size
    if isinstance(size, ResNetSize) and image_size is not None:
        architecture = architecture._replace(image_size=image_size)
    kind = "ResNet" if isinstance(size, ResNetSize) else "ViT"
    model = _without_values(architecture, head)
    if problems := valid.unlike(tensors, model.state_dict()):
        raise UserError(
            f"{path}: not the tensors of a {kind} of {size.description}:"
            f" {listed(problems)}; check that the file is whole and of such an encoder"
        )
    if prototypes is not None:
        width = head[HEAD + "fc3.weight"].shape[0] if head else None
        prototypes = valid.matrix("prototypes", prototypes, width, path)
    if normalization is not None:
        normalization = valid.normalization(normalization, channels, path)
    weights = Weights(
        path=path,
        architecture=architecture,
        encoder={name: tensor for name, tensor in tensors.items() if name not in head},
        head=head,
        prototypes=prototypes,
        classifier=classifier and _fitting(classifier, size.embed_dim, path),
        stated=normalization,
        config=config or {},
    )
    for name, side in (
        (f"data.{side_key}", weights.image_size),
        ("the image size", architecture.image_size),
    ):
        if type(side) is not int or not 0 < side <= MAX_SIDE:
            raise UserError(f"{path}: {name} is {shown(side)}, must be 1 to {MAX_SIDE} px")
    return weights


def require_plain(weights: Weights, target: str) -> None:
    """Refuse a ViT with relative position biases where only plain ones can be written.

    Raises:
        UserError: names what can be written instead.
    """
    if weights.architecture.form:
        raise UserError(
            f"{weights.path}: has relative position biases, which {target} has no place for;"
            " export it --to official, onnx or torch, or pre-train with meta.positions: learned"
        )


def require_facts(
    weights: Weights, config: dict[str, Any], names: dict[str, str], path: Path
) -> None:
    """Refuse a config that contradicts the tensors that it comes with.

    Args:
        weights: what the tensors are.
        config: keys that are not there say nothing.
        names: for each key the name of what it says: width, depth, hidden, ...
        path: of the config, for errors.

    Raises:
        UserError: it does.
    """
    size, channels, side, _ = weights.architecture
    classes = len(weights.classifier.bias) if weights.classifier else 0
    facts: dict[str, Any] = {"image_size": side, "channels": channels, "classes": classes}
    patch_size = None
    if isinstance(size, EncoderSize):
        patch_size, width, depth, num_heads, mlp_ratio = size
        facts |= {"patch_size": patch_size, "width": width, "depth": depth}
        facts |= {"num_heads": num_heads, "hidden": int(width * mlp_ratio)}
    for key, name in names.items():
        said, fact = config.get(key), facts[name]
        if said is None or said in (fact, [fact, fact]):
            continue
        stride = (name == "image_size" and type(said) is int and patch_size) or 0
        if stride and said // stride == side // stride:  # the rest of a patch is not seen
            continue
        raise UserError(
            f"{path}: {key} is {shown(said)}, but the tensors beside it are of {fact};"
            " download the folder again"
        )


def _fitting(classifier: Classifier, width: int, path: Path) -> Classifier:
    """Check that a classifier fits tokens of this width, and give it."""
    weight = valid.matrix("classifier.weight", classifier.weight, width, path)
    if not torch.is_tensor(classifier.bias) or classifier.bias.shape != weight.shape[:1]:
        raise UserError(f"{path}: 'classifier.bias' is not a number for each of its classes")
    bias = valid.matrix("classifier.bias", classifier.bias[None], len(weight), path)[0]
    return classifier._replace(weight=weight, bias=bias)


def _without_values(architecture: Architecture, head: Tensors) -> Encoder:
    """Build the encoder on the meta device, with a head of the shapes that its tensors have."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts without numbers, which will not fit
        fc = None
        ends = [head.get(HEAD + name) for name in ("fc1.weight", "fc3.weight")]
        if head and not any(end is None or end.ndim != 2 for end in ends):
            hidden, out = (len(end) for end in ends if end is not None)
            batch_norm = any(name.startswith(HEAD + "bn") for name in head)
            width = architecture.size.embed_dim
            fc = projection_head(width, hidden, out, batch_norm=batch_norm)
        return architecture.build(fc)
