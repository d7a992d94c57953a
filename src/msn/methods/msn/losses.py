"""MSN's loss as pure functions in log space (paper sections 3 and 4, eq. 1-3).

Shapes: B images, V anchor views of each, K prototypes, D output dimensions. Anchor rows are
view-major: all images of view 1, then all images of view 2, and so on.

Working with log-probabilities keeps values and gradients finite where `log(p ** -t)` is not:
a prototype opposite to a view has a probability that underflows, but a log-probability that does
not. Callers pass fp32 (or fp64) tensors.

With several processes B is each one's share of the images. Targets and mean assignment are those of
all images, and the mean over the processes of each loss is that of all images, gradients included.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from msn.runtime import collectives


@dataclass(frozen=True)
class LossSettings:
    """What the loss is made of.

    Attributes:
        temperature: tau of the anchors' assignment.
        sinkhorn_iterations: 0 leaves the targets unbalanced.
        memax_weight: weight of the regularizer (mean-entropy maximization); 0 leaves it out.
        ent_weight: weight of the anchors' entropy; 0 leaves it out.
        label_smoothing: share of each assignment, of anchors and targets, that is spread evenly.
        ensemble_temperature: of the weights of several heads (`msn.methods.msn.ensemble`).
    """

    temperature: float = 0.1
    sinkhorn_iterations: int = 3
    memax_weight: float = 1.0
    ent_weight: float = 0.0
    label_smoothing: float = 0.0
    ensemble_temperature: float = 0.05


class MSNLosses(NamedTuple):
    """The parts of the loss and what they were computed from.

    Attributes:
        total: cross_entropy + memax_weight * regularizer + ent_weight * entropy, shape ().
        cross_entropy: mean over the V*B anchor rows of H(target, anchor), shape ().
        regularizer: KL(mean anchor assignment || prior), shape (). Never negative.
        entropy: mean entropy of the anchor assignments, shape ().
        log_mean_assignment: log of the mean anchor assignment, shape (K,), detached.
        log_targets: log of the sharpened (and balanced) targets, shape (B, K), no gradient.
        by_image: mean over the views of H(target, anchor), shape (B,).
    """

    total: Tensor
    cross_entropy: Tensor
    regularizer: Tensor
    entropy: Tensor
    log_mean_assignment: Tensor
    log_targets: Tensor
    by_image: Tensor


def unit(x: Tensor) -> Tensor:
    """Scale the rows of x (N, D) to unit length, also where the squared norm overflows.

    The divisor is max(norm, 1e-12).
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = scale * torch.linalg.vector_norm(x / scale, dim=-1, keepdim=True)
    rows: Tensor = x / norm.clamp_min(1e-12)
    return rows


def log_assignment(
    features: Tensor, prototypes: Tensor, *, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """Assign features softly to prototypes (paper eq. 1), as log-probabilities.

    Equals, row by row: `p = softmax(cos(feature, prototypes) / temperature)`, then with label
    smoothing s: `(1 - s) * p + s / K`, then `log`.

    Args:
        features: (N, D).
        prototypes: (K, D).
        temperature: tau > 0.
        label_smoothing: s in [0, 1): how much of the mass is spread evenly.

    Returns:
        (N, K) log-probabilities.
    """
    log_p = F.log_softmax(unit(features) @ unit(prototypes).T / temperature, dim=-1)
    if label_smoothing:
        spread = torch.full_like(log_p, math.log(label_smoothing / len(prototypes)))
        log_p = torch.logaddexp(log_p + math.log1p(-label_smoothing), spread)
    return log_p


def log_sharpen(log_p: Tensor, sharpening: float) -> Tensor:
    """Sharpen the rows of (N, K) log-probabilities: `p ** (1 / T)`, renormalized (section 3)."""
    return F.log_softmax(log_p / sharpening, dim=-1)


def log_sinkhorn(log_p: Tensor, iterations: int) -> Tensor:
    """Balance (B, K) log-probabilities so that each prototype gets about the same mass.

    Equals: `q = p / p.sum()`, then `iterations` times: every column (prototype) scaled to total
    1 / K, every row (image) scaled to total 1 / B; at last every row scaled to total 1.
    Columns run over the images of all processes. Constant factors, such as 1/K and 1/B, cancel in
    the last scaling and are left out.
    """
    for _ in range(iterations):
        log_p = log_p - collectives.log_mean_exp(torch.logsumexp(log_p, dim=0, keepdim=True))
        log_p = log_p - torch.logsumexp(log_p, dim=1, keepdim=True)
    return log_p


def log_prior(num_prototypes: int, *, exponent: float = 0.0) -> Tensor:
    """Compute the log of the power-law prior, pi_k proportional to k ** -exponent: (K,), fp64.

    Exponent 0 is the uniform prior of MSN; PMSN (arXiv 2210.07277) uses 0.25 for long-tailed data.
    """
    ranks = torch.arange(1, num_prototypes + 1, dtype=torch.float64)
    return F.log_softmax(-exponent * ranks.log(), dim=0)


def kl_to_prior(log_mean: Tensor, log_prior: Tensor) -> Tensor:
    """Compute KL(mean assignment || prior) of two (K,) log-distributions.

    With a uniform prior this is MSN's mean-entropy maximization, log K - H(mean assignment);
    with another it is PMSN's prior matching (PMSN eq. 9). The direction matters: the reverse KL
    is a different loss.
    """
    return (log_mean.exp() * (log_mean - log_prior)).sum()


def log_mean(log_p: Tensor) -> Tensor:
    """Compute the log of the mean assignment over the rows of all processes: (N, K) -> (K,)."""
    return collectives.log_mean_exp(torch.logsumexp(log_p, dim=0) - math.log(len(log_p)))


def mean_entropy(log_p: Tensor) -> Tensor:
    """Average the entropy of the rows of (N, K) log-probabilities: shape ()."""
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


def assign(features: Tensor, prototypes: Tensor, settings: LossSettings) -> Tensor:
    """Assign features (N, D) to prototypes (K, D) with a loss's temperature and smoothing."""
    return log_assignment(
        features,
        prototypes,
        temperature=settings.temperature,
        label_smoothing=settings.label_smoothing,
    )


@torch.no_grad()
def msn_targets(
    features: Tensor, prototypes: Tensor, settings: LossSettings, *, sharpening: float
) -> Tensor:
    """Compute the targets of B images: assign, sharpen, then balance. Without gradient.

    Args:
        features: (B, D) target features.
        prototypes: (K, D).
        settings: with the temperature of the anchors; the sharpening makes the targets' colder.
        sharpening: T > 0 of `log_sharpen`.

    Returns:
        (B, K) log-probabilities.
    """
    log_p = log_sharpen(assign(features, prototypes, settings), sharpening)
    return log_sinkhorn(log_p, settings.sinkhorn_iterations)


def msn_losses(
    anchors: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    settings: LossSettings,
    *,
    sharpening: float,
    log_prior: Tensor,
) -> MSNLosses:
    """Compute MSN's loss (paper eq. 2 and 3).

    The naive loop it equals, with p(.) of `log_assignment` and t(.) of `msn_targets`:

        for view in range(V):
            for image in range(B):
                cross_entropy -= sum_k t[image, k] * log p(anchor[view, image])[k] / (V * B)
        total = cross_entropy + memax_weight * KL(mean of p || prior) + ent_weight * mean H(p)

    Args:
        anchors: (V*B, D) anchor features, view-major.
        targets: (B, D) target features; no gradient flows into them.
        prototypes: (K, D).
        settings: temperature and weights.
        sharpening: T of the targets.
        log_prior: (K,) log of the distribution that the mean assignment is matched to.

    Raises:
        ValueError: the anchor rows are not a multiple of the target rows.
    """
    if len(anchors) % len(targets):
        raise ValueError(f"{len(anchors)} anchor rows are no multiple of {len(targets)} targets")
    log_t = msn_targets(targets, prototypes, settings, sharpening=sharpening)
    log_p = assign(anchors, prototypes, settings)
    # Each target meets the V views of its image: sum those first instead of repeating targets.
    by_view = log_p.view(-1, *log_t.shape)
    agreement = log_t.exp() * by_view.sum(dim=0)
    cross_entropy = -agreement.sum() / len(log_p)
    mean = log_mean(log_p)
    regularizer = kl_to_prior(mean, log_prior.to(mean))
    entropy = mean_entropy(log_p)
    total = cross_entropy
    if settings.memax_weight:
        total = total + settings.memax_weight * regularizer
    if settings.ent_weight:
        total = total + settings.ent_weight * entropy
    by_image = -agreement.sum(dim=1) / len(by_view)
    return MSNLosses(total, cross_entropy, regularizer, entropy, mean.detach(), log_t, by_image)
