"""The learned token that stands for masked positions of an encoder's map, as in SimMIM."""

import torch
from torch import Tensor, nn

from msn.models.mask_units import enlarged
from msn.models.resnet import ResNet
from msn.models.vit import PatchEmbed, VisionTransformer

Maskable = VisionTransformer | ResNet
STD = 0.02


class MaskToken(nn.Module):
    """Masks what an encoder computes on, and gives its last map.

    In a ViT the token takes the place of patch embeddings. In a ResNet it takes the place of
    features that enter a stage, or is added to them (A2MIM), where they may be scaled first by a
    learned gate of each channel.

    Args:
        encoder: whose map is masked; not kept.
        stage: of a ResNet, from 0, whose input is masked.
        add: add the token in place of replacing what is masked.
        gate: first value of the gate; None leaves it out.
    """

    def __init__(
        self, encoder: Maskable, *, stage: int = 0, add: bool = False, gate: float | None = None
    ) -> None:
        super().__init__()
        self.stage, self.add = stage, add
        self.stride = stride_of(encoder, stage)
        shape: tuple[int, ...] = (1, 1, encoder.embed_dim)
        bound = STD
        if isinstance(encoder, ResNet):
            shape, bound = (1, encoder.channels(stage), 1, 1), 100 * STD
        self.mask_token = nn.Parameter(torch.empty(shape))
        # SimMIM's token is cut at one deviation, the one of the ResNets at 100 of them.
        nn.init.trunc_normal_(self.mask_token, std=STD, a=-bound, b=bound)
        self.mask_gamma = None if gate is None else nn.Parameter(torch.full(shape, gate))

    def encode(self, encoder: Maskable, images: Tensor, units: Tensor) -> Tensor:
        """Compute the last map of masked images: (B, C, H, W) -> (B, D, rows, columns).

        Args:
            encoder: the one that this was built for.
            images: of equal size, their masked pixels filled or not.
            units: (B, rows, columns) of the grid of mask units, true where masked.
        """
        cell = images.shape[-1] // units.shape[-1] // self.stride
        mask = enlarged(units, cell)
        if isinstance(encoder, ResNet):
            return encoder.map(images, self.stage, lambda maps: self.masked(maps, mask))
        tokens = encoder.tokens(images, mask=mask.flatten(1), mask_token=self.mask_token)
        maps: Tensor = tokens[:, 1:].mT.unflatten(2, mask.shape[1:])
        return maps

    def masked(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Mask the places of maps (B, C, h, w) where `mask` (B, h, w) is true."""
        token = self.mask_token.to(maps.dtype)
        there = mask[:, None]
        if not self.add:
            return torch.where(there, token, maps)
        kept = maps if self.mask_gamma is None else maps * self.mask_gamma.to(maps.dtype)
        return torch.where(there, kept + token, maps)


def stride_of(encoder: Maskable, stage: int = 0) -> int:
    """Count the pixels for a place where the token of an encoder is."""
    if isinstance(encoder, ResNet):
        return encoder.stride(stage)
    assert isinstance(encoder.patch_embed, PatchEmbed)
    return encoder.patch_embed.patch_size
