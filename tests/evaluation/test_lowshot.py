import numpy as np
import pytest
import torch
from torch.nn import functional

from msn.data.sources import open_source
from msn.errors import UserError
from msn.evaluation.lowshot import low_shot, prepare
from msn.features import evaluation_images, raw_pixels


def blobs(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes of different sizes, at least 15 points in each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(15 + 4 * torch.arange(classes))
    centres = torch.randn(classes, 8, generator=generator)
    return centres[labels] + torch.randn(len(labels), 8, generator=generator), labels


def minimise(features: torch.Tensor, labels: torch.Tensor, lambd: float) -> torch.Tensor:
    """The stated objective by another optimiser, over the full W (classes, D), in float64."""
    weight = torch.zeros(int(labels.max()) + 1, features.shape[1], dtype=torch.float64)
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = lambd / (2 * len(features)) * weight.square().sum()
        loss = functional.cross_entropy(features @ weight.T, labels) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("lambd", [0.075, 3.0])
def test_equals_the_minimum_of_the_objective(classes: int, lambd: float) -> None:
    features, labels = blobs(classes)
    smallest = int(labels.bincount().min())
    # As many of each class as there are to draw: nothing is left to chance.
    kept = torch.cat([(labels == label).nonzero()[:smallest, 0] for label in range(classes)])
    features, labels = features[kept], labels[kept]
    queries = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))

    train, test = torch.from_numpy(prepare(features)), torch.from_numpy(prepare(queries))
    truth = (test @ minimise(train, labels, lambd).T).argmax(dim=1)
    found = low_shot(
        features, labels, queries, truth, images_per_class=smallest, draws=1, lambd=lambd
    )
    wrong = (test @ minimise(train, labels, 2 * lambd).T).argmax(dim=1)
    assert found.mean > 99.9
    assert (wrong != truth).double().mean() > 0.002, "the test would not see a wrong lambda"


def test_features_are_centred_and_scaled_sample_by_sample() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0], [0.0, -3.0, 3.0]])
    expected = [np.array([-2, -1, 3]) / 14**0.5, np.zeros(3), np.array([0, -1, 1]) / 2**0.5]
    np.testing.assert_allclose(prepare(x), expected, atol=1e-12)
    np.testing.assert_allclose(prepare(x[:1] * 7 + 4)[0], expected[0], atol=1e-12)


def test_each_class_gives_as_many_images_and_fewer_are_among_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = blobs(4)[1]
    features = torch.eye(len(labels))
    drawn: list[tuple[set[int], list[int]]] = []

    def spy(x: np.ndarray, y: np.ndarray, test: np.ndarray, *, lambd: float) -> np.ndarray:
        drawn.append((set(x.argmax(axis=1).tolist()), np.bincount(y).tolist()))
        return np.zeros(len(test))

    monkeypatch.setattr("msn.evaluation.lowshot._fit_predict", spy)
    for count in (2, 5):
        low_shot(features, labels, features, labels, images_per_class=count, draws=3, seed=4)
    two, five = drawn[:3], drawn[3:]
    assert all(counts == [2] * 4 and len(images) == 8 for images, counts in two)
    assert all(counts == [5] * 4 and len(images) == 20 for images, counts in five)
    assert all(few[0] < many[0] for few, many in zip(two, five, strict=True))
    assert two[0] != two[1] != two[2]


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


def test_pixels_of_the_digits() -> None:
    train, val = (
        evaluation_images(
            open_source(source="digits", root_path=None, image_folder="", split=split),
            image_size=16,
        )
        for split in ("train", "val")
    )
    for count, expected in ((1, 66.9), (5, 86.2)):  # figures of an independent trial
        found = low_shot(
            raw_pixels(train.images),
            train.labels,
            raw_pixels(val.images),
            val.labels,
            images_per_class=count,
        )
        assert found.mean == pytest.approx(expected, abs=1.5)
