"""What an image encoder is to methods and evaluations, and where its features are read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from msn.runtime.errors import UserError


class Taps(NamedTuple):
    """Where features are taken from. As it stands: what MSN's own evaluations read.

    Attributes:
        blocks: class tokens of this many last blocks, side by side; 0 leaves them out.
        norm: after the final LayerNorm, or before it.
        patch_average: the mean patch token of the last block follows.
        mask: share of patches dropped from each image, as in the paper's Table 15.
    """

    blocks: int = 1
    norm: bool = False
    patch_average: bool = False
    mask: float = 0.0


FAR = 2**20
"""Side of an image so large, in px, that its border does not count."""
MSN_TAPS = Taps()
NORMED = Taps(norm=True)
"""The class token as others read it."""


class Staged(nn.Module, ABC):
    """A network in parts, which are sharded, compiled and recomputed one by one.

    Attributes:
        ENTRIES: methods beside `forward` that compute on images, which sharding has to know.
    """

    ENTRIES: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """List the parts from input to output, the stem first, then one block after another.

        They are sharded, or frozen in fine-tuning, one by one.
        """

    @abstractmethod
    def compile_blocks(self) -> None:
        """Compile the parts that are alike when they are first used; names are unchanged."""

    @abstractmethod
    def recompute_activations(self, recompute: bool) -> None:
        """Keep only the inputs of the parts, and recompute the rest in the backward pass."""

    def use_fused_attention(self, fused: bool) -> None:
        """Choose how attention is computed, in networks that have it."""


class Encoder(Staged):
    """Images (B, C, H, W) to features: what methods train and evaluations read.

    Attributes:
        embed_dim: width D of a token.
        in_chans: channels C of an image.
        num_heads: of its attention, which the shapes of weights do not tell; None without.
        STEM, BLOCKS: patterns of the names of parameters, with the numbers of a block in groups,
            for learning rates by layer.
    """

    ENTRIES: ClassVar[tuple[str, ...]] = ("features",)
    STEM: ClassVar[str]
    BLOCKS: ClassVar[str]

    embed_dim: int
    in_chans: int
    num_heads: int | None = None

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Count the rows and columns of tokens that an image gives; (0, 0) if it is too small."""

    @abstractmethod
    def features(self, images: Tensor, taps: Taps = MSN_TAPS, keep: Tensor | None = None) -> Tensor:
        """Compute the features of images: (B, width(taps)).

        Args:
            images: one batch of equal size.
            taps: where they are read; `mask` is for the caller, who draws `keep`.
            keep: kept patches, see `msn.models.masking.random_keep`; None keeps all.
        """

    @abstractmethod
    def patch_tokens(self, images: Tensor) -> Tensor:
        """Compute the final tokens of all places of the grid, row by row: (B, N, D)."""

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic depth of the last block, growing linearly from 0 at the first."""

    @abstractmethod
    def give_norm(self, pool: str) -> nn.Module:
        """Give the norm between features of this pooling and a classifier.

        The encoder then computes features alone: what it has behind them is dropped.
        """

    @abstractmethod
    def check(self, taps: Taps) -> None:
        """Refuse taps that this encoder does not have.

        Raises:
            UserError: says which, and what there is.
        """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def pitch(self) -> int:
        """Pixels from one token of the grid to the next."""
        return FAR // self.grid(FAR, FAR)[0]

    def attention_maps(
        self,
        images: Tensor,
        block: int = -1,
        keep: Tensor | None = None,
        *,
        class_token_only: bool = False,
    ) -> Tensor:
        """Compute the attention weights of a block: (B, heads, 1 + N, 1 + N), rows sum to 1.

        Args:
            images: one batch of equal size.
            block: number of the block, from 0, or from the last back, -1.
            keep: kept patches, see `msn.models.masking.random_keep`; None keeps all.
            class_token_only: compute its row alone, (B, heads, 1, 1 + N), in a fraction of the
                memory.

        Raises:
            UserError: there is no such block, or no attention.
        """
        raise UserError(
            f"a {type(self).__name__} has no attention of a class token; give a Vision Transformer"
        )

    def width(self, taps: Taps = MSN_TAPS) -> int:
        """Count the numbers that make up the features of one image."""
        return self.embed_dim * (taps.blocks + taps.patch_average)

    def unshare(self) -> None:
        """Give each block weights of its own in place of those that blocks share, if there are."""
