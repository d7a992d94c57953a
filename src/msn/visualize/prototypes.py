"""Prototypes of MSN: which images each one stands for, and how evenly they are used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.interop.weights import Weights
from msn.methods.msn.losses import unit
from msn.runtime.errors import UserError
from msn.visualize.sheet import GAP, PAPER, bars, framed, heading, magnification, on_paper


class Prototypes(NamedTuple):
    """N images assigned to the nearest of K prototypes in cosine similarity.

    Attributes:
        counts: images of each prototype, int64 (K,).
        similarity: of each image to its prototype, (N,).
        shown: the prototypes drawn, the most used first, (R,).
        top: rows of the images nearest to each of those, among its own, (R, T); -1 for none.
        views: uint8 (R, T, S, S, C), those images.
        purity: share of the most frequent label among the labeled images of each, (K,); NaN where
            there are none.
    """

    counts: np.ndarray
    similarity: np.ndarray
    shown: np.ndarray
    top: np.ndarray
    views: np.ndarray
    purity: np.ndarray

    @property
    def perplexity(self) -> float:
        """How many evenly used prototypes would be as uncertain: 1 to K."""
        share = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def picture(self) -> np.ndarray:
        """Draw a row of images for each prototype, and below how often each is used."""
        zoom = magnification(self.views.shape[3])
        rows: list[np.ndarray] = []
        width = self.top.shape[1] * (self.views.shape[3] * zoom + GAP)
        for prototype, views in zip(self.shown, self.views, strict=True):
            rows.append(heading(width, [(0, self._caption(prototype))]))
            if self.counts[prototype]:
                rows.append(np.concatenate([framed(view, zoom) for view in views], axis=1))
        rows.append(heading(width, [(0, f"{len(self.counts)} prototypes by use")]))
        return on_paper([*rows, bars(np.sort(self.counts)[::-1], width)])

    def numbers(self) -> dict[str, Any]:
        """List use and purity, of all prototypes together and of each."""
        pure = [None if np.isnan(share) else share for share in self.purity.tolist()]
        return {
            "images": int(self.counts.sum()),
            "used": int((self.counts > 0).sum()),
            "perplexity": self.perplexity,
            "mean_similarity": float(self.similarity.mean()),
            "batch_norm": "running statistics, as of no batch",
            "counts": self.counts.tolist(),
            "purity": self._mean_purity(),
            "purity_of_each": pure,
            "shown": self.shown.tolist(),
            "top": self.top.tolist(),
        }

    def _mean_purity(self) -> float | None:
        """Average the purity over the images; None without labels."""
        known = ~np.isnan(self.purity)
        weights = self.counts[known]
        return float(np.average(self.purity[known], weights=weights)) if known.any() else None

    def _caption(self, prototype: int) -> str:
        share = self.counts[prototype] / self.counts.sum()
        text = f"{prototype}: {share:.1%}"
        pure = self.purity[prototype]
        return text if np.isnan(pure) else f"{text}, {pure:.0%} pure"


def prototypes(
    weights: Weights,
    features: Tensor,
    views_of: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray | None = None,
    *,
    top: int = 8,
    rows: int = 32,
) -> Prototypes:
    """Assign images to prototypes, through the projection head.

    Its BatchNorm takes running statistics: an image is assigned whatever stands beside it, other
    than in training, where the batch counts.

    Args:
        weights: with head and prototypes.
        features: class tokens after the norm (`msn.models.encoder.NORMED`), (N, D).
        views_of: gives the images of some rows of the features, uint8 (n, S, S, C).
        labels: int64 (N,), negative for none.
        top: images drawn of each prototype.
        rows: prototypes drawn, at most.

    Raises:
        UserError: the weights have no head or no prototypes.
    """
    require_prototypes(weights)
    similarity, assigned = (found.numpy() for found in _nearest(weights, features))
    count = len(weights.prototypes if weights.prototypes is not None else ())
    counts = np.bincount(assigned, minlength=count)
    shown = np.argsort(-counts, kind="stable")[:rows]
    order = np.argsort(-similarity, kind="stable")
    best = np.full((len(shown), top), -1)
    for row, prototype in enumerate(shown):
        own = order[assigned[order] == prototype][:top]
        best[row, : len(own)] = own
    found = views_of(best[best >= 0])
    views = np.full((*best.shape, *found.shape[1:]), PAPER, np.uint8)
    views[best >= 0] = found
    purity = _purity(assigned, labels, count)
    return Prototypes(counts, similarity, shown, best, views, purity)


def require_prototypes(weights: Weights) -> None:
    """Refuse weights without a projection head or prototypes.

    Raises:
        UserError: says what to give.
    """
    if not weights.head or weights.prototypes is None:
        raise UserError(
            f"{weights.path}: has no prototypes with their projection head; give a checkpoint of"
            " MSN, or a file that the authors released"
        )


@torch.no_grad()
def _nearest(weights: Weights, features: Tensor) -> tuple[Tensor, Tensor]:
    """Find the highest similarity to a prototype and which one that is: (N,), (N,)."""
    head: Any = weights.build().fc
    assert weights.prototypes is not None
    directions = unit(weights.prototypes.float())
    parts = [(unit(head(part)) @ directions.T).max(dim=1) for part in features.split(4096)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _purity(assigned: np.ndarray, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Compute the share of the most frequent label of each prototype: (K,), NaN for none."""
    purity = np.full(count, np.nan)
    if labels is None:
        return purity
    for prototype in np.unique(assigned[labels >= 0]):
        own = labels[(assigned == prototype) & (labels >= 0)]
        purity[prototype] = np.bincount(own).max() / len(own)
    return purity
