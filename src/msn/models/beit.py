"""The Vision Transformer of SimMIM: relative position biases and layer scale (BEiT, 2106.08254).

On timm's BEiT block; weights are named as in the official code of SimMIM, which is BEiT's.
"""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from timm.models.beit import Block as TimmBlock
from timm.models.beit import RelativePositionBias, gen_relative_position_index
from torch import Tensor, nn
from torch.nn import functional as F

from msn.config.sizes import EncoderSize
from msn.models.block import (
    Affine,
    attention_linear,
    attention_weights,
    fused_attention,
    gelu_linear,
    norm_linear,
)
from msn.models.encoder import Taps
from msn.models.vit import PatchEmbed, VisionTransformer
from msn.runtime.errors import UserError

EXTRA = 3
"""Rows of a table behind those of patch pairs: class token to patch, patch to class token, class
token to itself."""
INIT_STD = 0.02


class BeitForm(NamedTuple):
    """What a BEiT is made of. As it stands: what SimMIM pre-trains.

    Attributes:
        shared_bias: one table of relative position biases for all blocks.
        block_bias: a table of each block's own.
        absolute: learned position embeddings, too.
        layer_scale: first value of the scales on each branch; None leaves them out.
        qkv_bias: biases of query and value; keys have none, as it would not count.
        final_norm: LayerNorm after the last block.
    """

    shared_bias: bool = True
    block_bias: bool = False
    absolute: bool = False
    layer_scale: float | None = 0.1
    qkv_bias: bool = True
    final_norm: bool = True


SIMMIM = BeitForm()
"""What SimMIM's official code pre-trains."""


class BeitBlock(TimmBlock):  # type: ignore[misc]  # timm has no types
    """timm's BEiT block, which keeps as little for the backward pass as `msn.models.block`."""

    def forward(
        self,
        x: Tensor,
        shared: Tensor | None,
        grid: tuple[int, int],
        *,
        class_token_only: bool = False,
    ) -> Tensor:
        """Compute all tokens (B, N, D), or only the class token (B, D) of them.

        Args:
            x: tokens (B, N, D), class token first.
            shared: (heads, N, N) added to the scores; None adds nothing.
            grid: rows and columns of patches.
            class_token_only: leave out the others.
        """
        attention, mlp = self.attn, self.mlp
        bias = self.scores_bias(shared, grid)
        qkv = norm_linear(x, self.norm1, self.query_key_value())
        # A CPU has no fused kernel that gives a bias its gradient.
        if attention.fused_attn and not (x.device.type == "cpu" and torch.is_grad_enabled()):
            mixed = attention.proj(fused_attention(qkv, attention.num_heads, bias))
        else:
            mixed = attention_linear(qkv, attention.num_heads, attention.proj, bias)
        if class_token_only:
            x, mixed = x[:, 0], mixed[:, 0]
        x = x + self.drop_path1(mixed if self.gamma_1 is None else self.gamma_1 * mixed)
        hidden = gelu_linear(norm_linear(x, self.norm2, mlp.fc1), mlp.fc2)
        tokens: Tensor = x + self.drop_path2(
            hidden if self.gamma_2 is None else self.gamma_2 * hidden
        )
        return tokens

    def attention_weights(
        self,
        x: Tensor,
        shared: Tensor | None,
        grid: tuple[int, int],
        *,
        class_token_only: bool = False,
    ) -> Tensor:
        """Compute how tokens attend to each other, see `msn.models.block.attention_weights`."""
        return attention_weights(
            self.norm1(x),
            self.query_key_value(),
            self.attn.num_heads,
            self.scores_bias(shared, grid),
            class_token_only=class_token_only,
        )

    def scores_bias(self, shared: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
        """Add the block's own biases, if it has any, to the shared ones: (heads, N, N)."""
        attention = self.attn
        if attention.relative_position_bias_table is None:
            return shared
        own = relative_bias(attention.relative_position_bias_table, attention.window_size, grid)
        return own if shared is None else own + shared

    def query_key_value(self) -> Affine:
        """Put the projection together; keys have no bias, as it would not count."""
        attention = self.attn
        weight = attention.qkv.weight
        if attention.q_bias is None:
            return Affine(weight, weight.new_zeros(len(weight)))
        zeros = torch.zeros_like(attention.v_bias)
        return Affine(weight, torch.cat([attention.q_bias, zeros, attention.v_bias]))


class Beit(VisionTransformer):
    """SimMIM's ViT: relative position biases and layer scale in place of position embeddings.

    Args:
        size: with a patch size.
        form: what it is made of.
        image_size: side in pixels that the tables are stored for.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        size: EncoderSize,
        form: BeitForm = SIMMIM,
        *,
        image_size: int = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        assert size.patch_size
        super().__init__(
            PatchEmbed(size.patch_size, in_chans, size.embed_dim),
            image_size=image_size,
            embed_dim=size.embed_dim,
            depth=0,
            num_heads=size.num_heads,
            mlp_ratio=size.mlp_ratio,
        )
        self.form = form
        self.rel_pos_bias: Any = (
            RelativePositionBias(self.grid_size, size.num_heads) if form.shared_bias else None
        )
        self.blocks = nn.ModuleList(
            BeitBlock(
                size.embed_dim,
                size.num_heads,
                qkv_bias=form.qkv_bias,
                mlp_ratio=size.mlp_ratio,
                drop_path=drop_path_rate * block / max(size.depth - 1, 1),
                init_values=form.layer_scale,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                window_size=self.grid_size if form.block_bias else None,
            )
            for block in range(size.depth)
        )
        # Both are computed for any grid, see `relative_bias`; keys have no bias.
        for module in self.modules():
            for name in ("relative_position_index", "k_bias"):
                if hasattr(module, name):
                    setattr(module, name, None)
        if not form.final_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if not form.absolute:
            self.register_parameter("pos_embed", None)
        init_as_simmim(self)

    def resized_pos_embed(self, rows: int, columns: int) -> Tensor:
        """Resize the position embeddings, see `VisionTransformer`; zeros if there are none."""
        if self.form.absolute:
            return super().resized_pos_embed(rows, columns)
        return self.cls_token.new_zeros(1, 1 + rows * columns, self.embed_dim)

    def beside(self, height: int, width: int) -> tuple[Any, ...]:
        """Give the shared biases (heads, N, N) and the grid of an image of this size."""
        grid = self.patch_embed.grid(height, width)
        if self.rel_pos_bias is None:
            return None, grid
        table = self.rel_pos_bias.relative_position_bias_table
        return relative_bias(table, self.grid_size, grid), grid

    def unshare(self) -> None:
        """Give each block a copy of the shared biases, as SimMIM's fine-tuning does."""
        if self.rel_pos_bias is None:
            return
        shared = self.rel_pos_bias.relative_position_bias_table.detach()
        for block in self.blocks:
            own, block.attn.window_size = block.attn.relative_position_bias_table, self.grid_size
            table = shared.clone() if own is None else own.detach() + shared
            block.attn.relative_position_bias_table = nn.Parameter(table)
        self.rel_pos_bias = None
        self.form = self.form._replace(shared_bias=False, block_bias=True)

    def check(self, taps: Taps) -> None:
        super().check(taps)
        if taps.mask:
            raise UserError(
                f"--mask {taps.mask:g}: an encoder with relative position biases sees whole images;"
                " leave it out"
            )


def relative_bias(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Look up the biases of all pairs of tokens: (heads, N, N), class token first.

    Args:
        table: ((2 * rows - 1) * (2 * columns - 1) + 3, heads).
        grid: rows and columns that the table is for.
        wanted: rows and columns to look up; the table is resized to them (bicubic).
    """
    if grid != wanted:
        table = resized_table(table, grid, wanted)
    index = pair_rows(wanted, table.device)
    pairs: Tensor = table[index.flatten()].unflatten(0, index.shape)
    return pairs.permute(2, 0, 1).contiguous()


def resized_table(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Resize a table to another grid, bicubic; what concerns the class token stays as it is."""
    pairs, extra = table[:-EXTRA], table[-EXTRA:]
    sides, target = ([2 * side - 1 for side in sizes] for sizes in (grid, wanted))
    maps = pairs.T.unflatten(1, sides)[None]
    resized = F.interpolate(maps, size=target, mode="bicubic", align_corners=False)
    return torch.cat([resized[0].flatten(1).T, extra])


@lru_cache(maxsize=16)
def pair_rows(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Find the row of the table that each pair of tokens reads: (N, N)."""
    index: Tensor = gen_relative_position_index(grid, device=device)
    return index


def init_as_simmim(encoder: VisionTransformer) -> None:
    """Initialize as in the official code of SimMIM.

    Weights are normal with deviation .02, cut at one deviation, and so are class token and
    positions; branches of block i, from 1, are divided by sqrt(2 * i). Biases are zero.
    """
    cut = partial(nn.init.trunc_normal_, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            cut(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    cut(encoder.cls_token)
    if encoder.pos_embed is not None and encoder.pos_embed.requires_grad:
        cut(encoder.pos_embed)
    with torch.no_grad():
        for number, block in enumerate(encoder.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
