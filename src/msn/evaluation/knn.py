"""k-NN classification on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from msn.config.protocol import PROTOCOL
from msn.evaluation.features import require_finite
from msn.runtime.errors import UserError

Setting = tuple[int, float | None]
"""Voting neighbors k, and the temperature of their votes; None counts heads."""
MAX_SCORES = 2**26
PART = 2**16  # features that are converted to double precision at a time


class KNN(NamedTuple):
    """Result of a k-NN classification."""

    top1: float  # percent of queries classified right
    predictions: Tensor  # int64 (Q,)


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = PROTOCOL.k,
    temperature: float | None = PROTOCOL.temperature,
    max_scores: int = MAX_SCORES,
) -> KNN:
    """Classify with a single setting of `knn_sweep`, which documents arguments and errors."""
    setting = (k, temperature)
    found = knn_sweep(
        *(train_features, train_labels, queries, query_labels),
        settings=[setting],
        max_scores=max_scores,
    )
    return found[setting]


@torch.no_grad()
def knn_sweep(
    train_features: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    settings: Sequence[Setting],
    max_scores: int = MAX_SCORES,
) -> dict[Setting, KNN]:
    """Classify each query by a vote of its k nearest training features in cosine similarity.

    A neighbor votes with weight exp(similarity / temperature) (Wu et al. 2018, and DINO), or
    with weight 1 if `temperature` is None. Classes with equal votes: the smallest label wins.
    Training features equally similar to a query, with only some of them among the nearest k:
    which of them vote is not defined. Similarities are computed once for all settings, on the
    device of the features.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) int64, however far apart.
        queries: (Q, D) float.
        query_labels: (Q,) int64.
        settings: number of voting neighbors, 1 <= k <= N, and temperature of each vote.
        max_scores: similarities held at a time; bounds the memory, not the result.

    Raises:
        UserError: a k is larger than N, or a feature is not finite.
    """
    most = max(k for k, _ in settings)
    if most > len(train_features):
        raise UserError(
            f"k-NN with k = {most} needs as many training images, there are {len(train_features)}: "
            "lower k (logging.probe.k)"
        )
    require_finite(train_features)
    require_finite(queries)
    gallery = functional.normalize(train_features.float(), dim=1)
    labels, truth = train_labels.to(gallery.device), query_labels.to(gallery.device)
    rows = max(1, max_scores // len(gallery))
    # By what there is: no memory for labels that are far apart.
    classes, numbers = labels.unique(return_inverse=True)
    parts: dict[Setting, list[Tensor]] = {setting: [] for setting in settings}
    for chunk in functional.normalize(queries.float(), dim=1).split(rows):
        similarity, nearest = (chunk @ gallery.T).topk(most, dim=1)
        for k, temperature in settings:
            votes = torch.zeros(len(chunk), len(classes), device=chunk.device, dtype=torch.float64)
            weights = _weights(similarity[:, :k].double(), temperature)
            votes.scatter_add_(1, numbers[nearest[:, :k]], weights)
            parts[k, temperature].append(classes[votes.argmax(dim=1)])
    predictions = {setting: torch.cat(part) for setting, part in parts.items()}
    return {
        setting: KNN(100 * (found == truth).double().mean().item(), found)
        for setting, found in predictions.items()
    }


@torch.no_grad()
def neighbors(
    train_features: Tensor, queries: Tensor, *, k: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k training features nearest to each query in cosine similarity, nearest first.

    Similarities are rounded to nine decimals, so that the order of additions does not count; of
    equal ones the first training features are taken.

    Args:
        train_features: (N, D) float.
        queries: (Q, D) float.
        k: 1 to N, or N - 1 with `own`.
        own: (Q,) int64, the training feature that a query itself is, which is left out; -1 for
            none.

    Returns:
        Similarities float64 (Q, k) and indices (Q, k).
    """
    asked = functional.normalize(queries.double(), dim=1)
    parts = train_features.split(PART)
    scores = torch.cat([asked @ functional.normalize(part.double(), dim=1).T for part in parts], 1)
    scores = scores.round(decimals=9)
    if own is not None:
        rows = (own >= 0).nonzero()[:, 0]
        scores[rows, own[rows]] = -torch.inf
    order = scores.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def _weights(similarity: Tensor, temperature: float | None) -> Tensor:
    if temperature is None:
        return torch.ones_like(similarity)
    # Relative to the nearest: the vote is the same, and no temperature overflows.
    return ((similarity - similarity[:, :1]) / temperature).exp()
