"""ResNets on timm's blocks, as encoders; names and shapes of their weights are torchvision's.

The plain family: a 7x7 convolution and a max-pool, then four stages of basic or bottleneck blocks
with the stride on the 3x3 convolution (arXiv 1512.03385), also wide (arXiv 1605.07146) or with
groups (ResNeXt, arXiv 1611.05431).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msn.config.sizes import ResNetSize
from msn.models.batch_norm import BatchNorm2d, statistics_kept
from msn.models.encoder import MSN_TAPS, Encoder, Taps
from msn.runtime.errors import UserError


class ResNet(Encoder):
    """A ResNet without its classifier, whose features are the mean of the last map.

    BatchNorm is over the batch of all processes. Convolutions are initialized as in torchvision,
    Kaiming normal, fan-out; the last norm of each block is zero: it starts as its shortcut.

    Args:
        size: of the network.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    ENTRIES = ("features", "map")
    STEM = r"conv1|bn1"
    BLOCKS = r"layer(\d+)\.(\d+)"

    def __init__(self, size: ResNetSize, *, in_chans: int = 3, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.embed_dim = size.embed_dim
        self.in_chans = in_chans
        self._recompute = False
        self.conv1 = nn.Conv2d(in_chans, size.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(size.width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(size, 0)
        self.layer2 = _stage(size, 1)
        self.layer3 = _stage(size, 2)
        self.layer4 = _stage(size, 3)
        self.set_drop_path(drop_path_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck):
                module.zero_init_last()

    @property
    def blocks(self) -> list[Any]:
        """The residual blocks of all stages, from input to output."""
        return [block for layer in self._layers() for block in layer]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the mean of the last map: (B, C, H, W) -> (B, embed_dim)."""
        return self._map(images).mean(dim=(2, 3))

    def features(self, images: Tensor, taps: Taps = MSN_TAPS, keep: Tensor | None = None) -> Tensor:
        """Compute the mean of the last map, the only features of a ResNet: (B, embed_dim).

        Raises:
            UserError: the taps are others, or `keep` is given.
        """
        self.check(taps)
        if keep is not None:
            raise UserError("a ResNet sees whole images: it cannot drop patches")
        return self._map(images).mean(dim=(2, 3))

    def check(self, taps: Taps) -> None:
        """Refuse taps other than the mean of the last map.

        Raises:
            UserError: says which, and the remedy.
        """
        reasons = {
            "--blocks": taps.blocks > 1 and "has features of its last map only",
            "--norm": taps.norm and "ends without a norm",
            "--mask": bool(taps.mask) and "sees whole images",
            "--patch-average": taps.blocks + taps.patch_average != 1 and "has no class token",
        }
        for option, reason in reasons.items():
            if reason:
                raise UserError(f"{option}: a ResNet {reason}; leave the option out")

    def stem(self, images: Tensor) -> Tensor:
        """Compute what enters the first stage: (B, C, H, W) -> (B, width, H/4, W/4)."""
        maps: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        return maps

    def map(
        self,
        images: Tensor,
        at: int | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute the last map: (B, C, H, W) -> (B, embed_dim, H/32, W/32), sides rounded up.

        Args:
            images: one batch of equal size.
            at: the stage, from 0, whose input is changed: (B, channels(at), H/stride, W/stride).
            change: what is done to it, such as replacing masked places.
        """
        return self._map(images, at, change)

    def _map(
        self,
        images: Tensor,
        at: int | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute `map`, to be called by either entry: sharding wraps each of them once."""
        maps = self.stem(images)
        for number, layer in enumerate(self._layers()):
            if number == at and change is not None:
                maps = change(maps)
            for block in layer:
                maps = self._run(block, maps)
        return maps

    def channels(self, at: int) -> int:
        """Count the channels of the map that enters a stage, from 0; stage 4 is the output."""
        expansion = self.embed_dim // (8 * self.size.width)
        return self.size.width if at == 0 else self.size.width * 2 ** (at - 1) * expansion

    def stride(self, at: int) -> int:
        """Count the px of the image for a place of the map that enters a stage, from 0."""
        return 4 if at == 0 else 2 ** (at + 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Count the rows and columns of the last map; padded convolutions round up."""
        return self.size.grid(height), self.size.grid(width)

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Compute the places of the last map, row by row: (B, N, embed_dim)."""
        return self.map(images).flatten(2).transpose(1, 2)

    def stages(self) -> Sequence[nn.Module]:
        """List the parts from input to output: the stem's convolution and norm, then the blocks."""
        return [self.conv1, self.bn1, *self.blocks]

    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic depth of the last block, growing linearly from 0 at the first."""
        blocks = self.blocks
        for number, block in enumerate(blocks):
            own = rate * number / max(len(blocks) - 1, 1)
            block.drop_path = DropPath(own) if own else None

    def give_norm(self, pool: str) -> nn.Module:
        """Give no norm: a classifier reads the mean of the last map, whatever the pooling."""
        return nn.Identity()

    def recompute_activations(self, recompute: bool) -> None:
        """Keep only the input of each block, and recompute the rest in the backward pass.

        Values and BatchNorm's running statistics are the same.
        """
        self._recompute = recompute

    def compile_blocks(self) -> None:
        """Compile the blocks when they are first used, for every shape; names are unchanged."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
        for block in self.blocks:
            block.compile(dynamic=False)

    def _layers(self) -> Iterator[nn.Sequential]:
        yield from (self.layer1, self.layer2, self.layer3, self.layer4)

    def _run(self, block: nn.Module, maps: Tensor) -> Tensor:
        if not (self._recompute and torch.is_grad_enabled()):
            out: Tensor = block(maps)
            return out
        again: Tensor = checkpoint(
            block,
            maps,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), statistics_kept(block)),
        )
        return again


def _stage(size: ResNetSize, number: int) -> nn.Sequential:
    """Build the blocks of a stage, from 0; all but the first halve the map."""
    kind = Bottleneck if size.block == "bottleneck" else BasicBlock
    planes = size.width * 2**number
    out_chans = planes * kind.expansion
    in_chans = size.width if number == 0 else out_chans // 2
    blocks = []
    for index in range(size.layers[number]):
        stride = 2 if number and not index else 1
        shortcut = None
        if stride > 1 or in_chans != out_chans:
            convolution = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            shortcut = nn.Sequential(convolution, BatchNorm2d(out_chans))
        blocks.append(
            kind(
                in_chans,
                planes,
                stride,
                shortcut,
                cardinality=size.groups,
                base_width=size.group_width,
                norm_layer=BatchNorm2d,
            )
        )
        in_chans = out_chans
    return nn.Sequential(*blocks)
