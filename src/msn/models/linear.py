"""Several linear classifiers on frozen features, computed at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn.models.batch_norm import BatchNorm

BATCH_NORM_EPS = 1e-6  # MAE's


class HeadSettings(NamedTuple):
    """What tells one linear classifier from another."""

    lr: float  # at its highest
    num_blocks: int  # whose class tokens it sees

    def __str__(self) -> str:
        return f"lr={self.lr:g} blocks={self.num_blocks}"


class LinearHead(nn.Module):
    """Norm, unit length, linear: (B, D) -> (B, classes).

    Args:
        dim: width D of the features.
        classes: number of classes.
        normalize: whether to scale to unit length.
        batch_norm: whether the norm is a BatchNorm without weights, as in MAE, or a LayerNorm.
        generator: of the initial weights, normal with deviation 0.01; biases are 0.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        normalize: bool,
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.norm = (
            BatchNorm(dim, eps=BATCH_NORM_EPS, affine=False) if batch_norm else nn.LayerNorm(dim)
        )
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm(features)
        if self.normalize:
            features = F.normalize(features, dim=-1)
        logits: Tensor = self.linear(features)
        return logits


class LinearHeads(nn.Module):
    """A classifier for each of some settings, all on the same features.

    All start from the same weights, whatever others there are beside one: (B, blocks * D), the
    class tokens of the last blocks, the last one last -> (heads, B, classes).

    Args:
        settings: of each classifier.
        dim: width D of one class token.
        classes: number of classes.
        normalize, batch_norm: of each, see `LinearHead`.
        seed: of the initial weights.
    """

    def __init__(
        self,
        settings: list[HeadSettings],
        *,
        dim: int,
        classes: int,
        normalize: bool,
        batch_norm: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        self.widths = [dim * each.num_blocks for each in settings]
        self.heads: Any = nn.ModuleList(  # Any: to mypy its members have no `linear`
            LinearHead(
                width,
                classes,
                normalize=normalize,
                batch_norm=batch_norm,
                generator=torch.Generator().manual_seed(seed),
            )
            for width in self.widths
        )

    def forward(self, features: Tensor) -> Tensor:
        pairs = zip(self.heads, self.widths, strict=True)
        return torch.stack([head(features[:, -width:]) for head, width in pairs])
