"""Low-shot classification: logistic regression on the features of a few labeled images."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from msn.config.protocol import PROTOCOL
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.runtime import keyed
from msn.runtime.errors import UserError, printable

# The strength in the official README's example of five images per class. (0.075 is the authors'
# for 1 % of ImageNet; none was published for one or two images per class.) On the held-out digits
# of the quickstart, seen before this was chosen, it gives the trained encoder 1 to 2 points more
# than 0.075 does, and raw pixels a point less at one image per class.
LAMBDA = 0.0025


class LowShot(NamedTuple):
    """Accuracy over draws of the labeled images, in percent."""

    images_per_class: int
    accuracies: list[float]  # one for each draw
    mean: float
    std: float  # sample standard deviation over the draws; 0 for one draw


def low_shot(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    images_per_class: int,
    draws: int = PROTOCOL.draws,
    seed: int = PROTOCOL.seed,
    lambd: float = LAMBDA,
) -> LowShot:
    """Fit on a few random images of each class and score on the whole test set, several times.

    The classifier is that of `msn.evaluation.logistic`, fitted in float64, as in the MSN paper's
    low-shot protocol. Draw i depends only on (seed, i): representations of the same images are
    compared on the same draws, and the images of a smaller `images_per_class` are among those of a
    larger one.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) int64.
        test_features: (M, D) float.
        test_labels: (M,) int64.
        images_per_class: labeled images drawn from each class.
        draws: number of draws and fits.
        seed: of the draws.
        lambd: strength of the L2 penalty, > 0.

    Raises:
        UserError: a class has fewer training images, or there is only one class.
    """
    _check(train_labels, images_per_class)
    train, test = prepare(train_features.double()), prepare(test_features.double())
    accuracies = []
    for draw in range(draws):
        chosen = draw_subset(train_labels, images_per_class, seed=seed, draw=draw)
        classifier = fit(train[chosen], train_labels[chosen], lambd=lambd, solver="sklearn")
        accuracies.append(accuracy(classifier, test, test_labels).top1)
    return summarize(images_per_class, accuracies)


def summarize(images_per_class: int, accuracies: Sequence[float]) -> LowShot:
    """Compute mean and spread of accuracies, one for each draw."""
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return LowShot(images_per_class, list(accuracies), statistics.fmean(accuracies), spread)


def draw_subset(
    labels: Tensor,
    images_per_class: int,
    *,
    seed: int,
    draw: int,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Draw some images of each class: int64 indices (classes * images_per_class,), by class.

    Images with a negative label are not drawn. `names` of the classes, by label, are for messages.

    Raises:
        UserError: a class has fewer.
    """
    _check(labels, images_per_class, names)
    order = torch.from_numpy(
        keyed.generator(seed, keyed.Stream.DRAW, draw).permutation(len(labels))
    )
    order = order[labels[order] >= 0]
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels[order].unique(return_counts=True)[1]
    return torch.cat([part[:images_per_class] for part in by_class.split(counts.tolist())])


def _check(labels: Tensor, images_per_class: int, names: Sequence[str] | None = None) -> None:
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"low-shot evaluation needs two classes or more, found {len(classes)}: "
            "check that the training images lie in one folder per class"
        )
    if counts.min() < images_per_class:
        fewest = int(classes[counts.argmin()])
        raise UserError(
            f"low-shot evaluation with {images_per_class} images per class: class "
            f"{printable(names[fewest]) if names else fewest} has only {int(counts.min())} training"
            " images; ask for fewer, or add images"
        )
