"""The one table of encoder sizes; nothing is imported here, so that a plan need not wait."""

from typing import Literal, NamedTuple

CONV_STEM_STRIDE = 16
"""Pixels per token side of a convolutional stem."""


class EncoderSize(NamedTuple):
    """What distinguishes one encoder from another. `patch_size` None stands for the conv stem."""

    patch_size: int | None
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    @property
    def tapped(self) -> int:
        """Blocks that features can be read from, the last of all."""
        return self.depth

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        patch = f"patch {self.patch_size}" if self.patch_size else "convolutional stem"
        heads = f"{self.num_heads} head{'s' * (self.num_heads != 1)}"
        return f"width {self.embed_dim}, depth {self.depth}, {heads}, {patch}"

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        return self.patch_size or CONV_STEM_STRIDE

    def grid(self, side: int) -> int:
        """Count the tokens along one side of a square view of `side` pixels.

        Patches drop a border that holds no whole one, the padded stem makes a further one of it.
        """
        return side // self.patch_size if self.patch_size else -(-side // CONV_STEM_STRIDE)


ENCODERS: dict[str, EncoderSize] = {
    "deit_tiny": EncoderSize(16, 192, 12, 3),
    "deit_small": EncoderSize(16, 384, 12, 6),
    "deit_small_p8": EncoderSize(8, 384, 12, 6),
    "deit_small_p7": EncoderSize(7, 384, 12, 6),
    "vitc_4gf": EncoderSize(None, 384, 11, 6, 3.0),
    "deit_small_convstem": EncoderSize(None, 384, 11, 6, 6.0),
    "deit_base_p8": EncoderSize(8, 768, 12, 12),
    "deit_base_p7": EncoderSize(7, 768, 12, 12),
    "deit_base_p4": EncoderSize(4, 768, 12, 12),
    "deit_base": EncoderSize(16, 768, 12, 12),
    "deit_large_p7": EncoderSize(7, 1024, 24, 16),
    "deit_large_p8": EncoderSize(8, 1024, 24, 16),
    "deit_large": EncoderSize(16, 1024, 24, 16),
    "deit_huge": EncoderSize(16, 1280, 32, 16),
    "deit_huge_p8": EncoderSize(8, 1280, 32, 16),
    "deit_huge_p7": EncoderSize(7, 1280, 32, 16),
    "deit_huge_p10": EncoderSize(10, 1280, 32, 16),
    "deit_huge_p14": EncoderSize(14, 1280, 32, 16),
}
"""The encoders of the official code of MSN, and ViT-H/14 of MAE."""


class ResNetSize(NamedTuple):
    """What distinguishes one ResNet from another.

    Attributes:
        block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the channels.
        layers: blocks of each stage.
        width: channels of the stem; twice as many in each next stage, before the expansion.
        groups: of the 3x3 convolutions in bottleneck blocks.
        group_width: channels of each group in the first stage of a network of width 64.
    """

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, int, int, int]
    width: int = 64
    groups: int = 1
    group_width: int = 64

    @property
    def embed_dim(self) -> int:
        """Channels of the last map."""
        return self.width * 8 * (4 if self.block == "bottleneck" else 1)

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.layers)

    @property
    def tapped(self) -> int:
        """Blocks that features can be read from: the last."""
        return 1

    @property
    def num_heads(self) -> None:
        """None, as there is no attention."""
        return None

    @property
    def stride(self) -> int:
        """Pixels per side of a place of the last map."""
        return 32

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        layers = "-".join(map(str, self.layers))
        rest = "" if self.groups == 1 else f", {self.groups} groups"
        rest += "" if self.group_width == 64 else f" of width {self.group_width}"
        return f"width {self.embed_dim}, {layers} {self.block} blocks, stem {self.width}{rest}"

    def grid(self, side: int) -> int:
        """Count the places along one side of the last map; padded convolutions round up."""
        return -(-side // self.stride)


RESNETS: dict[str, ResNetSize] = {
    "resnet18": ResNetSize("basic", (2, 2, 2, 2)),
    "resnet26": ResNetSize("bottleneck", (2, 2, 2, 2)),
    "resnet34": ResNetSize("basic", (3, 4, 6, 3)),
    "resnet50": ResNetSize("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetSize("bottleneck", (3, 4, 23, 3)),
    "resnet152": ResNetSize("bottleneck", (3, 8, 36, 3)),
    "resnet200": ResNetSize("bottleneck", (3, 24, 36, 3)),
    "wide_resnet50_2": ResNetSize("bottleneck", (3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": ResNetSize("bottleneck", (3, 4, 23, 3), group_width=128),
    "resnext50_32x4d": ResNetSize("bottleneck", (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNetSize("bottleneck", (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": ResNetSize("bottleneck", (3, 4, 23, 3), groups=64, group_width=4),
}
"""ResNets that timm has under these names, and most of them torchvision."""
