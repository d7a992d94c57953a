"""k-NN classification on frozen features: no training, so it tells most per second of compute."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from msn.errors import UserError


class KNN(NamedTuple):
    """Result of a k-NN classification."""

    top1: float  # percent of queries classified right
    predictions: Tensor  # int64 (Q,)


@torch.no_grad()
def knn(
    train_features: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
    max_scores: int = 2**26,
) -> KNN:
    """Classify each query by a vote of its k nearest training features in cosine similarity.

    A neighbour votes with weight exp(similarity / temperature) (Wu et al. 2018, and DINO), or
    with weight 1 if `temperature` is None. Classes with equal votes: the smallest label wins.
    Training features equally similar to a query, with only some of them among the nearest k:
    which of them vote is not defined.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) int64, non-negative.
        queries: (Q, D) float.
        query_labels: (Q,) int64.
        k: number of voting neighbours, 1 <= k <= N.
        temperature: of the vote; None counts heads.
        max_scores: similarities held at a time; bounds the memory, not the result.

    Raises:
        UserError: k is larger than N.
    """
    if k > len(train_features):
        raise UserError(
            f"k-NN with k = {k} needs as many training images, there are {len(train_features)}: "
            "lower k (logging.probe.k)"
        )
    gallery = functional.normalize(train_features.float(), dim=1)
    rows = max(1, max_scores // len(gallery))
    classes = int(train_labels.max()) + 1
    predictions = []
    for chunk in functional.normalize(queries.float(), dim=1).split(rows):
        similarity, nearest = (chunk @ gallery.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes, device=chunk.device, dtype=torch.float64)
        votes.scatter_add_(1, train_labels[nearest], _weights(similarity.double(), temperature))
        predictions.append(votes.argmax(dim=1))
    found = torch.cat(predictions)
    return KNN(100 * (found == query_labels).double().mean().item(), found)


def neighbours(train_features: Tensor, queries: Tensor, *, k: int) -> Tensor:
    """Indices (Q, k) of the training features nearest to each query, the nearest first."""
    gallery = functional.normalize(train_features.float(), dim=1)
    return (functional.normalize(queries.float(), dim=1) @ gallery.T).topk(k, dim=1).indices


def _weights(similarity: Tensor, temperature: float | None) -> Tensor:
    if temperature is None:
        return torch.ones_like(similarity)
    # Relative to the nearest: the vote is the same, and no temperature overflows.
    return ((similarity - similarity[:, :1]) / temperature).exp()
