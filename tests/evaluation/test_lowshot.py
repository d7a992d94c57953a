import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from msn.data.classes import labeled_splits
from msn.data.sources.digits import Digits
from msn.evaluation.features import evaluation_images, raw_pixels
from msn.evaluation.logistic import prepare
from msn.evaluation.lowshot import draw_subset, low_shot
from msn.runtime.errors import UserError


def blobs(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes of different sizes, at least 15 points in each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(15 + 4 * torch.arange(classes))
    centers = torch.randn(classes, 8, generator=generator)
    return centers[labels] + torch.randn(len(labels), 8, generator=generator), labels


def test_each_class_gives_as_many_images_and_fewer_are_among_more() -> None:
    labels = blobs(4)[1].flip(0)
    drawn = {
        count: [draw_subset(labels, count, seed=4, draw=draw) for draw in range(3)]
        for count in (2, 5)
    }
    for count, subsets in drawn.items():
        for subset in subsets:
            assert labels[subset].tolist() == [label for label in range(4) for _ in range(count)]
            assert len(set(subset.tolist())) == 4 * count
    pairs = zip(drawn[2], drawn[5], strict=True)
    assert all(set(few.tolist()) < set(many.tolist()) for few, many in pairs)
    assert len({tuple(subset.tolist()) for subset in drawn[2]}) == 3


def test_is_the_classifier_of_these_images() -> None:
    features, labels = blobs(3)
    found = low_shot(features, labels, features, labels, images_per_class=5, draws=2, lambd=0.1)
    x = prepare(features.double())
    for draw, top1 in enumerate(found.accuracies):
        chosen = draw_subset(labels, 5, seed=0, draw=draw)
        model = LogisticRegression(C=10, fit_intercept=False, tol=1e-8).fit(
            x[chosen].numpy(), labels[chosen].numpy()
        )
        assert top1 == pytest.approx(100 * model.score(x.numpy(), labels.numpy()))


def test_draws_depend_on_the_seed_alone() -> None:
    features, labels = blobs(4)
    run = [
        low_shot(features, labels, features, labels, images_per_class=1, draws=draws, seed=seed)
        for draws, seed in ((4, 0), (2, 0), (4, 1))
    ]
    assert run[0].accuracies[:2] == run[1].accuracies
    assert run[0].accuracies != run[2].accuracies
    assert run[0].mean == pytest.approx(np.mean(run[0].accuracies))
    assert run[0].std == pytest.approx(np.std(run[0].accuracies, ddof=1))


def test_one_draw_has_no_spread() -> None:
    features, labels = blobs(3)
    found = low_shot(features, labels, features, labels, images_per_class=1, draws=1)
    assert found.std == 0
    assert found.accuracies == [found.mean]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0, 1, 2, 2], "class 1 has only 1 training images"), ([4] * 5, "two classes")],
)
def test_too_few_images(labels: list[int], message: str) -> None:
    features, y = torch.randn(5, 3), torch.tensor(labels)
    with pytest.raises(UserError, match=message):
        low_shot(features, y, features, y, images_per_class=2)


@pytest.mark.slow
def test_pixels_of_the_digits() -> None:
    splits = labeled_splits(Digits(split="train"), Digits(split="val"))
    train, val = (evaluation_images(images, image_size=16) for images in (splits.train, splits.val))
    for count, expected in ((1, 66.9), (5, 86.2)):  # figures of an independent trial
        found = low_shot(
            raw_pixels(train.images),
            train.labels,
            raw_pixels(val.images),
            val.labels,
            images_per_class=count,
        )
        assert found.mean == pytest.approx(expected, abs=1.5)
