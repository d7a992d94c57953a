"""Counting hits: against scikit-learn, in unequal batches, with classifiers that diverged."""

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from msn.data.labeled import Batch
from msn.evaluation.accuracy import Score, accuracy, best_epoch


def scored(logits: Tensor, labels: Tensor, size: int) -> list[Score]:
    """`logits` (classifiers, N, classes) as if computed from the numbers of the images."""
    batches = [Batch(n[:, None], labels[n]) for n in torch.arange(len(labels)).split(size)]
    return accuracy(lambda n: logits[:, n.flatten()], batches, normalize=lambda images: images)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_as_scikit_learn_counts(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, 8, generator=generator)
    labels = torch.randint(8, (50,), generator=generator)
    for own, each in zip(scored(logits, labels, size), logits, strict=True):
        for k, value in ((1, own.top1), (5, own.top5)):
            expected = top_k_accuracy_score(labels, each, k=k, labels=range(8))
            assert value == pytest.approx(100 * expected)


def test_two_classes_are_all_among_the_best_five() -> None:
    (score,) = scored(torch.eye(2)[None], torch.tensor([0, 0]), 2)
    assert score == (50.0, 100.0)


def test_a_diverged_classifier_hits_nothing() -> None:
    logits = torch.stack([torch.full((4, 3), torch.nan), torch.eye(4, 3)])
    diverged, sound = scored(logits, torch.zeros(4, dtype=torch.int64), 3)
    assert diverged == (0.0, 0.0)
    assert sound.top5 == 100.0


def test_the_best_epoch_is_the_first_of_equals() -> None:
    def epoch(*tops: float) -> list[Score]:
        return [Score(top, 100.0) for top in tops]

    assert best_epoch([epoch(1, 5), epoch(7, 0), epoch(3, 7)]) == 2
