"""Draw which patches an anchor keeps (paper section 3, "patch drop").

The class token is never among the patches, so it is always kept.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MaskScope = Literal["batch", "global", "image"]


@dataclass(frozen=True)
class Masking:
    """How masked views lose patches.

    Attributes:
        drop: share of patches that is dropped.
        scope: one mask for each process's batch (official), for the batch of all processes, or for
            each image.
        seed: seed of the masks.
    """

    drop: float = 0.0
    scope: MaskScope = "batch"
    seed: int = 0


def kept_patches(num_patches: int, patch_drop: float) -> int:
    """Count the patches, of `num_patches`, that stay when a share `patch_drop` is dropped.

    Computed as floor(N * (1. - drop)) in floating point, rounding errors included: 100 patches
    at drop .9 keep 9. Official checkpoints were trained with these counts.
    """
    return math.floor(num_patches * (1.0 - patch_drop))


def random_keep(
    num_patches: int,
    patch_drop: float,
    *,
    seed: int,
    images: int,
    first: int = 0,
    scope: MaskScope = "batch",
) -> Tensor | None:
    """Draw the patches to keep.

    Args:
        num_patches: N patches of a view.
        patch_drop: share to drop, in [0, 1).
        seed: the draw depends on it and on nothing else.
        images: rows of the batch that the mask is for.
        first: number of the first of these rows in a larger batch with the same seed; only "image"
            minds.
        scope: "image" draws a permutation for each row, the others one for all (official).

    Returns:
        Indices of kept patches, unsorted: (images, kept) for "image", else (kept,);
        None when nothing is to be dropped.
    """
    if patch_drop == 0:
        return None
    kept = kept_patches(num_patches, patch_drop)
    if scope != "image":
        draw = torch.Generator().manual_seed(seed)
        return torch.randperm(num_patches, generator=draw)[:kept]
    return keyed_noise(num_patches, seed=seed, images=images, first=first).argsort(1)[:, :kept]


def keyed_noise(num_patches: int, *, seed: int, images: int, first: int = 0) -> Tensor:
    """Draw a uniform number for each patch of some images: float64 (images, N).

    Args:
        num_patches: N patches of an image.
        seed: the draw depends on it and on the number of the image.
        images: rows of the batch.
        first: number of the first of these rows in a larger batch with the same seed.
    """
    blocks = -(-num_patches // 4)  # of the four numbers that a step of Philox gives
    bits = np.random.Philox(key=seed).advance(first * blocks)
    noise = np.random.Generator(bits).random((images, 4 * blocks))[:, :num_patches]
    return torch.from_numpy(noise)


class Kept(NamedTuple):
    """Which patches of each image of a batch are kept, and where all belong.

    Attributes:
        indices: (B, kept) of the kept patches, in the order in which an encoder gets them.
        ranks: (B, N) place of each patch in the order of the noise; those of kept ones are lowest.
    """

    indices: Tensor
    ranks: Tensor

    @property
    def masked(self) -> Tensor:
        """Whether each patch is masked, (B, N) bool."""
        return self.ranks >= self.indices.shape[1]

    def to(self, device: torch.device) -> "Kept":
        """Move both to a device."""
        return Kept(*(tensor.to(device, non_blocking=True) for tensor in self))

    def chunk(self, parts: int) -> list["Kept"]:
        """Split into parts along the batch."""
        pairs = zip(self.indices.chunk(parts), self.ranks.chunk(parts), strict=True)
        return [Kept(*pair) for pair in pairs]


def keep_lowest(noise: Tensor, ratio: float) -> Kept:
    """Mask a share of the patches of each image: those with the highest noise, (B, N).

    `kept_patches` tells how many are kept; they stay in the order of their noise, as in MAE.
    """
    order = noise.argsort(dim=1, stable=True)
    return Kept(order[:, : kept_patches(noise.shape[1], ratio)], order.argsort(dim=1))


def unshuffle(tokens: Tensor, kept: Kept, mask_token: Tensor) -> Tensor:
    """Put kept tokens where they belong and the mask token elsewhere: (B, kept, D) -> (B, N, D).

    Args:
        tokens: of the kept patches, in the order of `kept.indices`.
        kept: which they are.
        mask_token: (1, 1, D), for all others.
    """
    batch, missing = len(tokens), kept.ranks.shape[1] - tokens.shape[1]
    both = torch.cat([tokens, mask_token.to(tokens.dtype).expand(batch, missing, -1)], dim=1)
    return both.gather(1, kept.ranks.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def select(tokens: Tensor, keep: Tensor) -> Tensor:
    """Select the kept patch tokens: (B, N, D) -> (B, kept, D), for either shape of `keep`."""
    if keep.ndim == 1:
        return tokens.index_select(1, keep)
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
