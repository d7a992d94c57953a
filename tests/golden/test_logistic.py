"""The low-shot classifier at six strengths, against recorded fits and the exact optimum."""

import numpy as np
import pytest
import torch

from msn.evaluation.logistic import accuracy, fit, prepare
from tests.golden.record import golden

RECORD = golden("logistic.npz")
LAMBDAS = RECORD["lambds"].tolist()
CASES = [
    ("cyanure", torch.float32),
    ("torch", torch.float32),
    ("torch", torch.float64),
    ("sklearn", torch.float64),
]


def data(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    train, test = (prepare(RECORD.tensor(f"{split}_embs", dtype)) for split in ("train", "test"))
    return train, RECORD.tensor("train_labels"), test, RECORD.tensor("test_labels")


def test_preparation() -> None:
    train, _, test, _ = data(torch.float32)
    np.testing.assert_allclose(train, RECORD["train_preprocessed"], atol=2e-7)
    np.testing.assert_allclose(test[:20], RECORD["test_preprocessed_first20"], atol=2e-7)


@pytest.mark.parametrize("at", range(len(LAMBDAS)))
@pytest.mark.parametrize(("solver", "dtype"), CASES)
def test_scores(at: int, solver: str, dtype: torch.dtype) -> None:
    train, labels, test, truth = data(dtype)
    model = fit(train, labels, lambd=LAMBDAS[at], solver=solver)
    top1 = accuracy(model, test, truth).top1
    assert top1 == pytest.approx(100 * RECORD["res.cyan_test"][at], abs=0.5)
    exact = 0.1 if (solver, dtype) == ("torch", torch.float64) else 0.5
    assert top1 == pytest.approx(100 * RECORD["res.exact_test"][at], abs=exact)


@pytest.mark.parametrize("at", range(len(LAMBDAS)))
def test_weights_and_predictions_of_the_exact_optimum(at: int) -> None:
    train, labels, test, _ = data(torch.float64)
    model = fit(train, labels, lambd=LAMBDAS[at])
    exact = RECORD["exact_coef"][at].T
    np.testing.assert_allclose(model.weight, exact, atol=1e-3 * np.abs(exact).max())
    predicted = model.classes[model.scores(test).argmax(dim=1)]
    assert (predicted.numpy() != RECORD["exact_pred"][at]).mean() <= 0.001
