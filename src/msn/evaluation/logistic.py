"""Multinomial logistic regression on frozen features, as in MSN's low-shot evaluation.

    minimize  (1/N) sum(cross-entropy) + lambd / (2N) ||W||^2

over W without intercept, on features prepared sample by sample: scikit-learn's C is 1 / lambd.
Three solvers give the same: cyanure, which the official code uses; L-BFGS in PyTorch, the fastest
for many classes; scikit-learn, the fastest for few.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from msn.evaluation.features import require_finite
from msn.runtime import keyed
from msn.runtime.devices import threads_for
from msn.runtime.errors import UserError

SOLVERS = ("cyanure", "torch", "sklearn")
PENALTIES = ("l2", "l1")
# Published: .075 for 1 % of ImageNet, .0025 in an example with five images per class. The official
# script's own default, .00025, is the first.
LAMBDAS = (0.00025, 0.0025, 0.025, 0.075, 0.25, 0.75)
FOLDS = 5
# Largest entry of the gradient, relative to where the fit starts. In float64 predictions are then
# those of the exact optimum; in float32 rounding ends the fit at about this.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


class Classifier(NamedTuple):
    """A fit: `weight` (K, D) float, and the labels (K,) int64 of its rows, in sorted order."""

    weight: Tensor
    classes: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Compute the class scores (N, K) of prepared features (N, D)."""
        return features @ self.weight.T


class Accuracy(NamedTuple):
    """In percent. `top5` is None for fewer than six classes, where it would say nothing."""

    top1: float
    top5: float | None
    per_class: dict[int, float]  # by label, for the classes of the test set


def prepare(features: Tensor, *, normalize: bool = True) -> Tensor:
    """Center each sample over its features; with `normalize`, scale it to unit length.

    Per sample, not per feature: no statistics of the data set enter. A constant sample is zero.

    Raises:
        UserError: a feature is not finite.
    """
    require_finite(features)
    centered = features - features.mean(dim=1, keepdim=True)
    # Beyond rounding: a constant sample would be nothing but its rounding errors, made large.
    noise = torch.finfo(features.dtype).eps * features.abs().amax(dim=1, keepdim=True)
    centered = torch.where(centered.abs().amax(dim=1, keepdim=True) > 4 * noise, centered, 0)
    return functional.normalize(centered, dim=1, eps=0.0).nan_to_num() if normalize else centered


def fit(
    features: Tensor,
    labels: Tensor,
    *,
    lambd: float,
    solver: str = "torch",
    penalty: str = "l2",
) -> Classifier:
    """Fit W to all of the given samples.

    Args:
        features: (N, D) float, prepared; "torch" computes in their type and on their device.
        labels: (N,) int64.
        lambd: strength of the penalty, > 0.
        solver: one of `SOLVERS`.
        penalty: one of `PENALTIES`; "l1" is lambd / N times the sum of |W|, by cyanure alone.

    Raises:
        UserError: there is only one class, or no such solver, penalty or strength.
    """
    check_settings(lambd=lambd, solver=solver, penalty=penalty)
    classes, targets = labels.to(features.device).unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"logistic regression needs two classes or more, found {len(classes)}:"
            " check that the training images lie in one folder per class"
        )
    strength = lambd / len(features)
    with threads_for(features.numel() * len(classes)):
        if solver == "cyanure":
            weight = _cyanure(features, targets, len(classes), strength, penalty)
        elif solver == "sklearn":
            weight = _sklearn(features, targets, len(classes), lambd)
        else:
            weight = _lbfgs(features, targets, len(classes), strength)
    return Classifier(weight, classes)


def accuracy(classifier: Classifier, features: Tensor, labels: Tensor) -> Accuracy:
    """Measure accuracy on prepared features; images of classes not fitted count as wrong."""
    labels = labels.to(features.device)
    best = min(5, len(classifier.classes))
    with threads_for(features.numel() * len(classifier.classes)):
        found = classifier.classes[classifier.scores(features).topk(best, dim=1).indices]
    hits = found == labels[:, None]
    first = hits[:, 0].double()
    present = labels.unique()
    per_class = {int(label): 100 * first[labels == label].mean().item() for label in present}
    top5 = 100 * hits.any(dim=1).double().mean().item() if len(classifier.classes) > 5 else None
    return Accuracy(100 * first.mean().item(), top5, per_class)


def choose_lambda(
    features: Tensor,
    labels: Tensor,
    *,
    solver: str = "torch",
    penalty: str = "l2",
    lambdas: tuple[float, ...] = LAMBDAS,
    seed: int = 0,
) -> float:
    """Choose the strength with the best cross-validated accuracy on the training samples.

    Stratified, with five folds or as many as the smallest class has samples. Of equally good
    strengths the strongest is taken.

    Raises:
        UserError: a class has a single sample.
    """
    smallest, folds = _folds(labels, seed)
    if smallest < 2:
        raise UserError(
            "--lambd auto cross-validates and needs two labeled images of each class, one has a"
            " single image; give a value, such as 0.0025"
        )
    scores = dict.fromkeys(lambdas, 0.0)
    for fold in range(int(folds.max()) + 1):
        inside = folds != fold
        for lambd in lambdas:
            model = fit(
                features[inside], labels[inside], lambd=lambd, solver=solver, penalty=penalty
            )
            predicted = model.classes[model.scores(features[~inside]).argmax(dim=1)]
            scores[lambd] += int((predicted == labels[~inside].to(predicted.device)).sum())
    return max(scores, key=lambda lambd: (scores[lambd], lambd))


def check_settings(*, lambd: float, solver: str, penalty: str) -> None:
    """Refuse settings that `fit` would refuse.

    Raises:
        UserError: there is no such solver, penalty or strength.
    """
    if solver not in SOLVERS:
        raise UserError(f"--solver {solver}: must be {', '.join(SOLVERS[:-1])} or {SOLVERS[-1]}")
    known = PENALTIES if solver == "cyanure" else PENALTIES[:1]
    if penalty not in known:
        raise UserError(
            f"--penalty {penalty}: the solver {solver} knows {' and '.join(known)}; give one of"
            " them" + (", or --solver cyanure" if penalty in PENALTIES else "")
        )
    if not (math.isfinite(lambd) and lambd > 0):
        raise UserError(f"--lambd {lambd:g}: must be a finite number above 0, or auto")


def _folds(labels: Tensor, seed: int) -> tuple[int, Tensor]:
    """Give the size of the smallest class, and the fold (N,) of each sample."""
    counts = labels.unique(return_counts=True)[1]
    smallest = int(counts.min())
    draw = keyed.generator(seed, keyed.Stream.SPLIT).permutation(len(labels))
    order = torch.from_numpy(draw).to(labels.device)
    folds = torch.empty_like(labels)
    # Samples sorted by class, at random within it, are dealt out to the folds in turn.
    dealt = order[labels[order].argsort(stable=True)]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]]).repeat_interleave(counts)
    rank = torch.arange(len(labels), device=labels.device) - starts
    folds[dealt] = rank % min(FOLDS, smallest)
    return smallest, folds


def _lbfgs(features: Tensor, targets: Tensor, classes: int, strength: float) -> Tensor:
    weight = features.new_zeros(classes, features.shape[1])
    onehot = functional.one_hot(targets, classes).to(features.dtype)
    mean_of_class = onehot.T @ features / len(features)

    def closure() -> Tensor:
        # By hand: the softmax is in the loss already, autograd would make it again.
        scores = features @ weight.T
        total = scores.logsumexp(dim=1, keepdim=True)
        loss = total.mean() - (mean_of_class * weight).sum()
        shares = scores.sub_(total).exp_()
        weight.grad = torch.addmm(
            strength * weight - mean_of_class, shares.T, features, alpha=1 / len(features)
        )
        return loss + strength / 2 * weight.square().sum()

    closure()
    assert weight.grad is not None
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=2000,
        max_eval=5000,
        tolerance_grad=TOLERANCE[weight.dtype] * weight.grad.abs().max().item(),
        tolerance_change=torch.finfo(features.dtype).eps,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    return weight.detach()


def _cyanure(
    features: Tensor, targets: Tensor, classes: int, strength: float, penalty: str
) -> Tensor:
    from cyanure.estimators import Classifier as Cyanure

    # The difference of the two rows bears half the squared penalty that they bear together, and as
    # much of the absolute one.
    scale = 0.5 if classes == 2 and penalty == "l2" else 1.0
    model = Cyanure(
        loss="logistic" if classes == 2 else "multiclass-logistic",
        penalty=penalty,
        fit_intercept=False,
        lambda_1=scale * strength,
        tol=1e-3,
        max_iter=300,
        duality_gap_interval=10,
        random_state=0,
        n_threads=torch.get_num_threads(),
        verbose=False,
    )
    x = np.ascontiguousarray(features.detach().cpu().numpy())
    model.fit(x, targets.cpu().numpy())
    weight = torch.from_numpy(np.asarray(model.coef_)).to(features)
    if classes == 2:
        return _two_rows(weight)
    return weight if weight.shape[0] == classes else weight.T


def _sklearn(features: Tensor, targets: Tensor, classes: int, lambd: float) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=(2 if classes == 2 else 1) / lambd, fit_intercept=False, max_iter=1000, tol=1e-6
    )
    model.fit(features.detach().cpu().numpy(), targets.cpu().numpy())
    weight = torch.from_numpy(np.asarray(model.coef_)).to(features)
    return _two_rows(weight) if classes == 2 else weight


def _two_rows(difference: Tensor) -> Tensor:
    """Make the W of two classes from the difference of its rows, which libraries fit."""
    half = difference.reshape(1, -1) / 2
    return torch.cat([-half, half])
