"""Weights to carry to and fro."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msn.config.sizes import ENCODERS, EncoderSize, ResNetSize
from msn.interop.weights import Classifier, Weights, weights_from
from msn.models.head import projection_head
from msn.models.resnet import ResNet
from msn.models.vit import build_encoder

NARROW = ResNetSize("bottleneck", (1, 2, 1, 1), width=16)
TINY = EncoderSize(patch_size=4, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0)
RELEASED = {
    "vits16_800ep": ("deit_small", 197),
    "vitb16_600ep": ("deit_base", 197),
    "vitl16_600ep": ("deit_large", 197),
    "vitb4_300ep": ("deit_base_p4", 3137),
    "vitl7_200ep": ("deit_large_p7", 1025),
}
"""Encoder and positions of the released files."""


def shapes_of(
    size: EncoderSize, *, image_size: int = 224, in_chans: int = 3, hidden: int = 32, out: int = 16
) -> dict[str, torch.Size]:
    """Shapes by official name, head included, without making a tensor."""
    with torch.device("meta"):
        head = projection_head(size.embed_dim, hidden, out, batch_norm=True)
        encoder = build_encoder(size, image_size=image_size, in_chans=in_chans, head=head)
    return {name: tensor.shape for name, tensor in encoder.state_dict().items()}


def random_tensors(shapes: dict[str, torch.Size], seed: int = 0) -> dict[str, Tensor]:
    """All tensors random, so that no two can be confused: norms and biases, too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        values = torch.randn(shape, generator=generator) * 0.05
        if name.endswith("running_var"):
            return values.abs_() + 0.5
        return values + 1 if "norm" in name and name.endswith("weight") else values

    return {name: draw(name, shape) for name, shape in shapes.items()}


def random_weights(
    size: EncoderSize = TINY,
    *,
    image_size: int = 16,
    in_chans: int = 3,
    classes: int = 0,
    with_head: bool = True,
) -> Weights:
    tensors = random_tensors(shapes_of(size, image_size=image_size, in_chans=in_chans))
    if not with_head:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
    classifier = None
    if classes:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(classes, size.embed_dim, generator=generator)
        classifier = Classifier(weight, torch.randn(classes, generator=generator))
    return weights_from(
        tensors,
        path=Path("random"),
        num_heads=size.num_heads,
        prototypes=torch.randn(8, 16) if with_head else None,
        classifier=classifier,
    )


def random_resnet(
    size: ResNetSize = NARROW, *, image_size: int = 64, in_chans: int = 3, classes: int = 0
) -> Weights:
    with torch.device("meta"):
        model = ResNet(size, in_chans=in_chans)
    tensors = random_tensors({name: t.shape for name, t in model.state_dict().items()})
    for tensor in tensors.values():
        if tensor.ndim == 4:  # so that activations neither vanish nor grow
            tensor *= 20 / tensor[0].numel() ** 0.5
    classifier = None
    if classes:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(classes, size.embed_dim, generator=generator)
        classifier = Classifier(weight, torch.randn(classes, generator=generator))
    path = Path("random")
    return weights_from(tensors, path=path, classifier=classifier, image_size=image_size)


def released_state(name: str, values: bool = False) -> dict[str, Any]:
    """What a released file holds; without values the tensors take no memory."""
    model, _ = RELEASED[name]
    shapes = shapes_of(ENCODERS[model], hidden=2048, out=256)
    if values:
        tensors = random_tensors(shapes)
    else:
        tensors = {
            key: torch.zeros((), dtype=torch.float if shape else torch.int64).expand(shape)
            for key, shape in shapes.items()
        }
    return {
        "target_encoder": {f"module.{key}": tensor for key, tensor in tensors.items()},
        "prototypes": torch.zeros(1).expand(1024, 256),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, types and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def images(*size: int, batch: int = 2, channels: int = 3) -> Tensor:
    """Normalized images (B, C, H, W)."""
    height, width = size[0], size[-1]
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, channels, height, width, generator=generator)
