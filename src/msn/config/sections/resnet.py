"""ResNets in section `meta`: a named one, or one of any size."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Strict, Tag

from msn.config import sizes
from msn.config.sections.base import Few, Section, Width
from msn.config.sections.meta import MOST_WEIGHTS, EncoderSize

ENCODER_TAGS = ("encoder is a ViT", "encoder is a ResNet")


class ResNetSize(Section):
    """A ResNet of any size, in place of a named one."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the channels."""
    layers: Annotated[tuple[Few, Few, Few, Few], Strict(False)]
    """Blocks of each stage."""
    width: Width = 64
    """Channels of the stem; twice as many in each next stage, before the bottleneck's expansion."""
    groups: Few = 1
    """Groups of the 3x3 convolutions of bottleneck blocks (ResNeXt)."""
    group_width: Width = 64
    """Channels of a group in the first stage of a network of width 64."""

    @property
    def size(self) -> sizes.ResNetSize:
        """The same without the checks, as encoders are built from it."""
        return sizes.ResNetSize(**self.model_dump())

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            yield "groups", "groups and group_width are for block: bottleneck; leave them out"
        if self.width * self.group_width // 64 < 1:
            rule = f"{self.group_width} leaves a group no channel at width {self.width}"
            yield "group_width", f"{rule}; use at least {-(-64 // self.width)}"
        inner = self.width * self.group_width / 64 * self.groups
        weights = sum(
            count * 4**stage * (8 * self.width * inner + 9 * inner**2 / self.groups)
            for stage, count in enumerate(self.layers)
        )
        if weights > MOST_WEIGHTS:
            rule = f"{self.width} makes about {weights:.1e} weights"
            yield "width", f"{rule}; lower it or layers, to at most {MOST_WEIGHTS:.0e}"


def _tag(encoder: Any) -> str:
    keys = encoder if isinstance(encoder, dict) else {}
    resnet = isinstance(encoder, ResNetSize) or not {"block", "layers", "width"}.isdisjoint(keys)
    return ENCODER_TAGS[resnet]


AnyEncoder = Annotated[
    Annotated[EncoderSize, Tag(ENCODER_TAGS[0])] | Annotated[ResNetSize, Tag(ENCODER_TAGS[1])],
    Discriminator(_tag),
]
"""An encoder of any size, for methods that take both kinds."""
