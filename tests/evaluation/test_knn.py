import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from msn.evaluation.knn import knn, knn_sweep, neighbors
from msn.runtime.errors import UserError

TEMPERATURE = 0.07


def vote(distances: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp((1 - distances) / TEMPERATURE)
    return weights


def clusters(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train and query points of 6 classes, overlapping so far that neighbors disagree."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(6, 10, generator=generator)
    labels = torch.randint(6, (400,), generator=generator)
    points = centers[labels] + 2 * torch.randn(400, 10, generator=generator)
    points *= torch.rand(400, 1, generator=generator) + 0.1  # lengths must not matter
    return points[:300], labels[:300], points[300:], labels[300:]


@pytest.mark.parametrize("k", [1, 2, 5, 20, 300])
@pytest.mark.parametrize("temperature", [None, TEMPERATURE])
def test_equals_scikit_learn(k: int, temperature: float | None) -> None:
    train, train_labels, queries, query_labels = clusters()
    weights = vote if temperature else "uniform"
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    expected = model.fit(train.double(), train_labels).predict(queries.double())
    found = knn(train, train_labels, queries, query_labels, k=k, temperature=temperature)
    assert found.predictions.tolist() == expected.tolist()
    assert found.top1 == pytest.approx(100 * (expected == query_labels.numpy()).mean())


def test_the_two_votes_differ() -> None:
    train, train_labels, queries, query_labels = clusters()
    plain = knn(train, train_labels, queries, query_labels, k=20, temperature=None)
    weighted = knn(train, train_labels, queries, query_labels, k=20, temperature=TEMPERATURE)
    assert not torch.equal(plain.predictions, weighted.predictions)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40_000))
def test_chunks_do_not_change_the_result(max_scores: int) -> None:
    data = clusters(seed=1)
    whole, parts = knn(*data, k=7), knn(*data, k=7, max_scores=max_scores)
    assert torch.equal(whole.predictions, parts.predictions)
    assert whole.top1 == parts.top1


def test_equal_votes_go_to_the_smallest_label() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 1.0]])
    for labels in ([3, 1], [1, 3]):
        found = knn(train, torch.tensor(labels), query, torch.tensor([1]), k=2, temperature=None)
        assert found.predictions.tolist() == [1]
        assert found.top1 == 100


def test_a_nearer_neighbor_outvotes_two_farther_ones() -> None:
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]])
    # exp(1 / T) > 2 exp(.8 / T) for T < .2 / log 2 = .289
    for temperature, expected in ((0.28, 0), (0.30, 1), (1e-4, 0)):
        found = knn(train, labels, query, torch.tensor([0]), k=3, temperature=temperature)
        assert found.predictions.tolist() == [expected]


def test_too_few_training_images() -> None:
    data = clusters()
    with pytest.raises(UserError, match=r"k = 301 .* there are 300: lower k"):
        knn(*data, k=301)


def test_neighbors_come_nearest_first() -> None:
    train, _, queries, _ = clusters(seed=2)
    similarity = torch.cosine_similarity(queries[:, None], train[None], dim=2)
    expected = similarity.argsort(dim=1, descending=True)[:, :5]
    assert torch.equal(neighbors(train, queries, k=5)[1], expected)


def test_a_sweep_gives_what_each_setting_gives_alone() -> None:
    data = clusters(seed=3)
    settings = [(k, temperature) for k in (1, 5, 20) for temperature in (None, TEMPERATURE)]
    found = knn_sweep(*data, settings=settings, max_scores=5000)
    assert list(found) == settings
    for (k, temperature), result in found.items():
        alone = knn(*data, k=k, temperature=temperature)
        assert torch.equal(result.predictions, alone.predictions)
        assert result.top1 == alone.top1


def test_features_that_are_not_finite() -> None:
    train, train_labels, queries, query_labels = clusters()
    queries[3, 2] = torch.nan
    with pytest.raises(UserError, match="image 3: its features are not finite"):
        knn(train, train_labels, queries, query_labels)


def test_labels_far_apart_take_no_memory() -> None:
    features, labels = torch.eye(3), torch.tensor([4_000_000_000, 7, 2**62])
    found = knn(features, labels, features, labels, k=1)
    assert found.top1 == 100
    assert found.predictions.tolist() == labels.tolist()
