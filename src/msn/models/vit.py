"""Vision Transformers on timm's blocks, with what MSN needs added.

Added here: position embeddings resized as in the official code (bicubic, no antialias), patches
dropped by given indices, feature taps, official initialization and official state-dict names
(`cls_token`, `pos_embed`, `patch_embed.*`, `blocks.N.*`, `norm.*`, and `fc.*` for the head).
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn.config.sizes import EncoderSize
from msn.models.encoder import MSN_TAPS, NORMED, Encoder, Taps
from msn.models.masking import select
from msn.models.positions import sincos_positions
from msn.models.stack import BlockStack
from msn.runtime.errors import UserError


class PatchEmbed(nn.Module):
    """Linear embedding of square patches; a border that holds no whole patch is dropped."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Count the rows and columns of patches in an image."""
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches of images, row by row: (B, C, H, W) -> (B, N, D).

        The convolution of the official code, written as the matrix product that it is: patches do
        not overlap, so a product of the unfolded image is the same and faster.
        """
        batch, channels, height, width = images.shape
        rows, columns = self.grid(height, width)
        size = self.patch_size
        patches = images[:, :, : rows * size, : columns * size]
        patches = patches.reshape(batch, channels, rows, size, columns, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ConvEmbed(nn.Module):
    """Convolutional stem (arXiv 2106.14881): 3x3 convolutions of stride 2, then one 1x1."""

    def __init__(self, in_chans: int, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.in_chans = in_chans
        layers: list[nn.Module] = []
        for out_chans, stride in zip(channels[:-1], strides[:-1], strict=True):
            layers.append(nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False))
            layers += [nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True)]
            in_chans = out_chans
        layers.append(nn.Conv2d(in_chans, channels[-1], 1, strides[-1]))
        self.strides = strides
        self.stem = nn.Sequential(*layers)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Count the rows and columns of tokens; padded convolutions round up."""
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
        return height, width

    def forward(self, images: Tensor) -> Tensor:
        """Embed images as tokens, row by row: (B, C, H, W) -> (B, N, D)."""
        tokens: Tensor = self.stem(images).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(BlockStack, Encoder):
    """A ViT encoder whose output is the head's projection of the normalized class token.

    Args:
        patch_embed: images to patch tokens; its `grid` gives rows and columns for a size.
        image_size: side in pixels that the position embeddings are stored for.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads; they divide `embed_dim`.
        mlp_ratio: hidden width of a block's MLP over D.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        head: applied to the class token; identity when None.
    """

    ENTRIES = ("features", "tokens")
    COMPILED = slice(-1)  # of the last little is computed
    STEM = r"cls_token|pos_embed|patch_embed"
    BLOCKS = r"blocks\.(\d+)"

    def __init__(
        self,
        patch_embed: PatchEmbed | ConvEmbed,
        *,
        image_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
        head: nn.Module | None = None,
    ) -> None:
        from msn.models.block import Block  # timm takes seconds, and few commands build one

        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.in_chans = patch_embed.in_chans
        self.grid_size = patch_embed.grid(image_size, image_size)
        num_patches = self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, embed_dim))
        self.patch_embed = patch_embed
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        rates = [drop_path_rate * block / max(depth - 1, 1) for block in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                drop_path=rate,
                norm_layer=norm_layer,
            )
            for rate in rates
        )
        self.norm = norm_layer(embed_dim)
        self.fc = head if head is not None else nn.Identity()
        self.apply(init_official)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the head's output of the class token: (B, C, H, W) -> (B, out_dim).

        Args:
            images: one batch of equal size.
            keep: kept patches, see `msn.models.masking.random_keep`; None keeps all.
        """
        features: Tensor = self.fc(self._features(images, NORMED, keep))
        return features

    def features(self, images: Tensor, taps: Taps = MSN_TAPS, keep: Tensor | None = None) -> Tensor:
        """Compute class tokens of the last blocks, then the mean patch: (B, width(taps)).

        MSN's low-shot and linear evaluations read them before the final norm. Where no patch is
        asked for, the last block computes its class token alone.
        """
        return self._features(images, taps, keep)

    def _features(self, images: Tensor, taps: Taps, keep: Tensor | None) -> Tensor:
        """Compute `features`, to be called by each entry: sharding wraps every one of them once."""
        final = self.norm if taps.norm else nn.Identity()
        tokens, beside = self.embed(images, keep), self.beside(*images.shape[-2:])
        class_tokens: deque[Tensor] = deque(maxlen=taps.blocks)
        for block in self.blocks[:-1]:
            tokens = self._run(block, tokens, beside)
            class_tokens.append(tokens[:, 0])
        if not taps.patch_average:
            class_tokens.append(self.blocks[-1](tokens, *beside, class_token_only=True))
            return torch.cat([final(token) for token in class_tokens], dim=-1)
        tokens = self._run(self.blocks[-1], tokens, beside)
        class_tokens.append(tokens[:, 0])
        patches = final(tokens[:, 1:]).mean(dim=1)
        return torch.cat([*(final(token) for token in class_tokens), patches], dim=-1)

    def tokens(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Compute all tokens after the final norm, class token first: (B, 1 + kept, D).

        The arguments are those of `embed`.
        """
        tokens = self.embed(images, keep, mask=mask, mask_token=mask_token)
        beside = self.beside(*images.shape[-2:])
        for block in self.blocks:
            tokens = self._run(block, tokens, beside)
        normed: Tensor = self.norm(tokens)
        return normed

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Compute the normalized patch tokens after the last block: (B, N, D)."""
        return self.tokens(images)[:, 1:]

    def attention_maps(
        self,
        images: Tensor,
        block: int = -1,
        keep: Tensor | None = None,
        *,
        class_token_only: bool = False,
    ) -> Tensor:
        depth = len(self.blocks)
        if not -depth <= block < depth:
            raise UserError(f"--block {block}: must be 0 to {depth - 1}, or -{depth} to -1")
        tokens, beside = self.embed(images, keep), self.beside(*images.shape[-2:])
        for before in self.blocks[: block % depth]:
            tokens = before(tokens, *beside)
        looked_into = self.blocks[block]
        weights: Tensor = looked_into.attention_weights(
            tokens, *beside, class_token_only=class_token_only
        )
        return weights

    def embed(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Make the tokens that enter the first block: (B, 1 + kept, D), class token first.

        Args:
            images: one batch of equal size.
            keep: kept patches, see `msn.models.masking.random_keep`; None keeps all.
            mask: (B, N), true where `mask_token` (1, 1, D) takes the place of a patch.
            mask_token: a patch as it is before its position is added.
        """
        patches = self.patch_embed(images)
        if mask is not None and mask_token is not None:
            patches = torch.where(mask[..., None], mask_token.to(patches.dtype), patches)
        positions = self.resized_pos_embed(*self.grid(*images.shape[-2:]))
        cls_position, patch_positions = positions[:, :1], positions[:, 1:]
        patches = patches + patch_positions
        if keep is not None:
            patches = select(patches, keep)
        cls = (self.cls_token + cls_position).expand(images.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return self.patch_embed.grid(height, width)

    def check(self, taps: Taps) -> None:
        least, depth = (0 if taps.patch_average else 1), len(self.blocks)
        if not least <= taps.blocks <= depth:
            raise UserError(
                f"--blocks {taps.blocks}: the encoder has {depth}; give {least} to {depth}"
            )

    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic depth of the last block, growing linearly from 0 at the first."""
        from timm.layers import DropPath

        depth = len(self.blocks)
        for number, block in enumerate(self.blocks):
            own = rate * number / max(depth - 1, 1)
            block.drop_path1, block.drop_path2 = DropPath(own), DropPath(own)

    def give_norm(self, pool: str) -> nn.Module:
        """Give the final norm to read class tokens through, a new one to read mean patches."""
        norm: nn.Module = self.norm
        del self.norm, self.fc
        return norm if pool == "cls" else nn.LayerNorm(self.embed_dim, eps=1e-6)

    def stages(self) -> Sequence[nn.Module]:
        return [self.patch_embed, *self.blocks]

    def resized_pos_embed(self, rows: int, columns: int) -> Tensor:
        """Resize the position embeddings to a grid of patches: (1, 1 + rows * columns, D).

        Bicubic without antialiasing, the class position untouched: the values of the official
        code, also for the grids on which that code crashes (14 to 29 for one) and for rectangular
        ones (which it takes for square if the number of patches happens to match).
        """
        if (rows, columns) == self.grid_size:
            return self.pos_embed
        cls_position, patch_positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = patch_positions.reshape(1, *self.grid_size, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([cls_position, grid.flatten(2).transpose(1, 2)], dim=1)

    def beside(self, height: int, width: int) -> tuple[Any, ...]:
        """Give what each block takes beside the tokens of an image of this size; here nothing."""
        return ()


def build_encoder(
    size: EncoderSize,
    *,
    image_size: int = 224,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    head: nn.Module | None = None,
    positions: Literal["learned", "sincos"] = "learned",
) -> VisionTransformer:
    """Build an encoder of one of the `ENCODERS` sizes or any other.

    Positions are learned, or MAE's fixed tables of sines and cosines.
    """
    embed: PatchEmbed | ConvEmbed
    if size.patch_size is None:
        stages = [size.embed_dim // ratio for ratio in (8, 4, 2, 1)]
        embed = ConvEmbed(in_chans, [*stages, size.embed_dim], [2, 2, 2, 2, 1])
    else:
        embed = PatchEmbed(size.patch_size, in_chans, size.embed_dim)
    encoder = VisionTransformer(
        embed,
        image_size=image_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
        drop_path_rate=drop_path_rate,
        head=head,
    )
    if positions == "sincos":
        table = sincos_positions(size.embed_dim, *encoder.grid_size)
        encoder.pos_embed = nn.Parameter(table, requires_grad=False)
    return encoder


def init_official(module: nn.Module) -> None:
    """Initialize as in the official code: linear normal .02, convolution Kaiming normal, fan-in.

    Biases of linear layers are zero; norms keep weight one and bias zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in")
