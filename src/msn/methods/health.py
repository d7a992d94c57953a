"""Measures of collapse: whether the representation is alive, which the loss does not show.

The measures take and return tensors and stay on the device; reading them is up to the caller.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Below this the mean cosine similarity of two images is above 1 - 0.05^2 = 0.9975.
MIN_FEATURE_STD = 0.05
# 1 is a single direction, 1 prototype; anything alive is far above, even of 2 classes (2.0).
MIN_RANK = 1.5
MIN_PROTOTYPES = 1.5
# With fewer images the measures are small of themselves: RankMe is at most their number.
MIN_IMAGES = 8


def rankme(features: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Compute the effective rank of `features` (B, D), a scalar from 1 (a line) to min(B, D).

    exp of the entropy of the normalized singular values (RankMe, Garrido et al. 2023).
    """
    singular = torch.linalg.svdvals(features.detach().float())
    p = singular / (singular.sum() + eps) + eps
    rank: Tensor = (-(p * p.log()).sum()).exp()
    return rank


def feature_std(features: Tensor) -> Tensor:
    """Measure the spread of `features` (B, D) as a scalar: 0 if all are equal, 1 if isotropic.

    Mean over the dimensions of the standard deviation of the unit-length features, times sqrt(D).
    """
    unit = functional.normalize(features.detach().float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


def assignment_entropy(mean_probs: Tensor) -> Tensor:
    """Compute the entropy of the mean assignment (K,) in nats, a scalar from 0 to log K."""
    entropy: Tensor = torch.special.entr(mean_probs.detach().float()).sum()
    return entropy


def prototypes_in_use(probs: Tensor) -> Tensor:
    """Count the prototypes, of K, that are the first choice of any row of `probs` (B, K)."""
    used = torch.zeros(probs.shape[1], device=probs.device)
    # Scattered rather than `unique`, whose shape would have to be read back from the device.
    return used.scatter_(0, probs.argmax(dim=1), 1.0).sum()


def verdict(*, feature_std: float, rankme: float, proto_entropy: float, images: int) -> str | None:
    """Give one line of warning if the representation has collapsed, else None.

    An untrained encoder looks collapsed, too: ask after the warm-up.

    Args:
        feature_std: as from `feature_std`; warns below 0.05.
        rankme: as from `rankme`; warns below 1.5.
        proto_entropy: as from `assignment_entropy`; warns if exp of it is below 1.5.
        images: number of features measured; with fewer than 8 nothing is judged.
    """
    if images < MIN_IMAGES:
        return None
    if feature_std < MIN_FEATURE_STD:
        return (
            f"the representation has collapsed: feature std {feature_std:.3g} (0: all images look "
            "the same to the encoder, 1: isotropic); try a lower optimization.lr, a longer "
            "optimization.warmup or a larger batch"
        )
    if rankme < MIN_RANK:
        return (
            f"the representation has collapsed to a line: RankMe {rankme:.3g} (effective number "
            f"of dimensions in use by {images} images); try a lower optimization.lr, a larger "
            "batch or a higher criterion.memax_weight"
        )
    prototypes = math.exp(proto_entropy)
    if prototypes < MIN_PROTOTYPES:
        return (
            f"the prototypes have collapsed: {prototypes:.3g} effectively in use (exp of the "
            "entropy of the mean assignment); try a higher criterion.memax_weight, "
            "criterion.use_sinkhorn: true, a larger batch or a smaller criterion.num_proto"
        )
    return None
