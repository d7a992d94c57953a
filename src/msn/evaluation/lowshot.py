"""Low-shot classification: logistic regression on the features of a few labelled images."""

import statistics
from typing import NamedTuple

import numpy as np
from torch import Tensor

from msn import keyed
from msn.errors import UserError

# The strength in the official README's example of five images per class. (0.075 is the authors'
# for 1 % of ImageNet; none was published for one or two images per class.) On the held-out digits
# of the quickstart, seen before this was chosen, it gives the trained encoder 1 to 2 points more
# than 0.075 does, and raw pixels a point less at one image per class.
LAMBDA = 0.0025


class LowShot(NamedTuple):
    """Accuracy over draws of the labelled images, in percent."""

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
    draws: int = 20,
    seed: int = 0,
    lambd: float = LAMBDA,
) -> LowShot:
    """Fit on a few random images of each class, score on all of the test set, several times.

    Minimises (1/n) sum(cross-entropy) + lambd/(2n) ||W||^2 over multinomial W without intercept,
    on features prepared by `prepare`, as in the MSN paper's low-shot protocol. Draw i depends only
    on (seed, i): representations of the same images are compared on the same draws, and the images
    of a smaller `images_per_class` are among those of a larger one.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) int64.
        test_features: (M, D) float.
        test_labels: (M,) int64.
        images_per_class: labelled images drawn from each class.
        draws: number of draws and fits.
        seed: of the draws.
        lambd: strength of the L2 penalty, > 0.

    Raises:
        UserError: a class has fewer training images, or there is only one class.
    """
    labels = train_labels.cpu().numpy()
    _check(labels, images_per_class)
    train, test = prepare(train_features), prepare(test_features)
    truth = test_labels.cpu().numpy()
    accuracies = []
    for draw in range(draws):
        chosen = _draw(labels, images_per_class, seed=seed, draw=draw)
        predicted = _fit_predict(train[chosen], labels[chosen], test, lambd=lambd)
        accuracies.append(100 * float((predicted == truth).mean()))
    spread = statistics.stdev(accuracies) if draws > 1 else 0.0
    return LowShot(images_per_class, accuracies, statistics.fmean(accuracies), spread)


def prepare(features: Tensor) -> np.ndarray:
    """Each sample: minus its mean over the features, then to unit length. (N, D) float64.

    Per sample, not per feature: no statistics of the data set enter. A constant sample stays zero.
    """
    x = features.detach().cpu().double().numpy()
    x = x - x.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def _check(labels: np.ndarray, images_per_class: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"low-shot evaluation needs two classes or more, found {len(classes)}: "
            "check that the training images lie in one folder per class"
        )
    if counts.min() < images_per_class:
        raise UserError(
            f"low-shot evaluation with {images_per_class} images per class: class "
            f"{classes[counts.argmin()]} has only {counts.min()} training images; "
            "ask for fewer, or add images"
        )


def _draw(labels: np.ndarray, images_per_class: int, *, seed: int, draw: int) -> np.ndarray:
    order = keyed.generator(seed, keyed.Stream.DRAW, draw).permutation(len(labels))
    return np.concatenate(
        [order[labels[order] == label][:images_per_class] for label in np.unique(labels)]
    )


def _fit_predict(
    features: np.ndarray, labels: np.ndarray, test: np.ndarray, *, lambd: float
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    # Of two classes scikit-learn fits the difference of the rows of W, which bears half the
    # penalty that the two rows bear together.
    strength = lambd / 2 if len(np.unique(labels)) == 2 else lambd
    model = LogisticRegression(C=1 / strength, fit_intercept=False, max_iter=1000, tol=1e-6)
    predicted: np.ndarray = model.fit(features, labels).predict(test)
    return predicted
