"""MAE's decoder, and MAE's initialization of both its halves (arXiv 2111.06377)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from msn.models.block import Block
from msn.models.masking import Kept, unshuffle
from msn.models.positions import sincos_positions
from msn.models.stack import BlockStack


class Decoder(BlockStack):
    """Predict the pixels of all patches from the tokens of the kept ones.

    Its parameters have the official names without the official `decoder_` before them.

    Args:
        width: of the encoder's tokens.
        grid: rows and columns of patches.
        patch_values: numbers that a patch holds: its pixels times their channels.
        embed_dim: width d of the decoder, a multiple of 4.
        depth: number of blocks.
        num_heads: attention heads; they divide `embed_dim`.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        patch_values: int,
        *,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(width, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        positions = sincos_positions(embed_dim, *grid)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm_layer)
            for _ in range(depth)
        )
        self.norm = norm_layer(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_values)
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, kept: Kept) -> Tensor:
        """Predict all patches from the encoder's tokens, class token first.

        (B, 1 + kept, D) -> (B, N, patch_values).
        """
        tokens = self.embed_tokens(latent, kept)
        for block in self.blocks:
            tokens = self._run(block, tokens)
        prediction: Tensor = self.pred(self.norm(tokens[:, 1:]))
        return prediction

    def stages(self) -> Sequence[nn.Module]:
        return [self.embed, *self.blocks]

    def embed_tokens(self, latent: Tensor, kept: Kept) -> Tensor:
        """Make the tokens that enter the first block, in the order of the image: (B, 1 + N, d)."""
        tokens = self.embed(latent)
        patches = unshuffle(tokens[:, 1:], kept, self.mask_token)
        return torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as MAE does: Xavier uniform, bias 0.

    Query, key and value are one matrix of 3D x D, and drawn as such.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def init_encoder(encoder: nn.Module) -> None:
    """Initialize an encoder as MAE does.

    The patch embedding is drawn as the matrix that it is, its bias as torch draws that of any
    convolution; the class token is normal with deviation 0.02.
    """
    encoder.apply(init_linear)
    projection: Any = encoder.get_submodule("patch_embed.proj")
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    bound = 1 / math.sqrt(projection.weight[0].numel())
    nn.init.uniform_(projection.bias, -bound, bound)
    nn.init.normal_(encoder.get_parameter("cls_token"), std=0.02)
