import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from msn.evaluation.logistic import LAMBDAS, accuracy, choose_lambda, fit, prepare
from msn.runtime.errors import UserError


def blobs(classes: int, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(12)
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    points = centers[labels] + noise * torch.randn(len(labels), 8, generator=generator)
    return prepare(points.double()), labels


def objective(weight: Tensor, features: Tensor, labels: Tensor, lambd: float) -> float:
    loss = torch.nn.functional.cross_entropy(features @ weight.T, labels)
    return float(loss + lambd / (2 * len(features)) * weight.square().sum())


@pytest.mark.parametrize("solver", ["torch", "cyanure", "sklearn"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("lambd", [0.0025, 0.075, 3.0])
def test_equals_scikit_learn(solver: str, classes: int, lambd: float) -> None:
    features, labels = blobs(classes)
    # Of two classes scikit-learn fits the difference of the rows of W, which bears half of the
    # penalty that the two rows bear together.
    strength = lambd / 2 if classes == 2 else lambd
    model = LogisticRegression(C=1 / strength, fit_intercept=False, max_iter=5000, tol=1e-9)
    expected = torch.from_numpy(model.fit(features.numpy(), labels.numpy()).coef_)
    if classes == 2:
        expected = torch.cat([-expected / 2, expected / 2])
    single = solver == "cyanure"
    found = fit(features.float() if single else features, labels, lambd=lambd, solver=solver)
    assert found.classes.tolist() == list(range(classes))
    best = objective(expected, features, labels, lambd)
    value = objective(found.weight.double(), features, labels, lambd)
    assert value == pytest.approx(
        best, rel={"cyanure": 5e-3, "sklearn": 1e-5, "torch": 1e-7}[solver]
    )
    worse = objective(fit(features, labels, lambd=2 * lambd).weight, features, labels, lambd)
    assert worse > best * (1 + 5e-3) or lambd < 0.01, "a wrong lambda would not be seen"


def test_l1_makes_weights_zero() -> None:
    features, labels = blobs(4)
    found = fit(features.float(), labels, lambd=2.0, solver="cyanure", penalty="l1")
    assert (found.weight == 0).double().mean() > 0.2


def test_labels_need_not_be_contiguous() -> None:
    features, labels = blobs(3)
    for solver in ("torch", "cyanure"):
        plain = fit(features.float(), labels, lambd=0.1, solver=solver)
        other = fit(features.float(), 100 - 7 * labels, lambd=0.1, solver=solver)
        assert other.classes.tolist() == [86, 93, 100]
        torch.testing.assert_close(other.weight.flip(0), plain.weight, rtol=1e-2, atol=2e-2)


def test_accuracies() -> None:
    features, labels = torch.eye(8), torch.arange(8)
    model = fit(features, labels, lambd=0.01)
    # Classes 0 .. 7 by their score for this query: 3, 0, 7, 6, 5, 4, 2, 1.
    query = torch.tensor([0.7, 0.0, 0.1, 1.0, 0.3, 0.4, 0.5, 0.6])
    truth = torch.tensor([3, 3, 0, 5, 4, 9])
    found = accuracy(model, query.expand(6, -1), truth)
    assert found.top1 == pytest.approx(100 * 2 / 6)
    assert found.top5 == pytest.approx(100 * 4 / 6)
    assert found.per_class == {0: 0, 3: 100, 4: 0, 5: 0, 9: 0}
    assert accuracy(fit(*blobs(5), lambd=1.0), *blobs(5)).top5 is None


def test_features_are_centered_and_scaled_sample_by_sample() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0], [5.1, 5.1, 5.1], [0.0, -3.0, 3.0]])
    for dtype in (torch.float32, torch.float64):
        expected = [np.array([-2, -1, 3]) / 14**0.5, np.zeros(3), np.array([0, -1, 1]) / 2**0.5]
        np.testing.assert_allclose(prepare(x.to(dtype)), expected, atol=1e-6)
        np.testing.assert_allclose(prepare(x[:1].to(dtype) * 7 + 4)[0], expected[0], atol=1e-6)
        plain = prepare(x.to(dtype), normalize=False)
        np.testing.assert_allclose(plain, [[-2, -1, 3], [0, 0, 0], [0, -3, 3]], atol=1e-6)
    with pytest.raises(UserError, match="image 1: its features are not finite"):
        prepare(torch.tensor([[1.0, 2.0], [torch.inf, 0.0]]))


@pytest.mark.slow
def test_the_strength_that_cross_validation_chooses() -> None:
    # Where classes overlap wholly in a few samples a strong penalty is best, where they do not any.
    noisy, labels = blobs(4, noise=4.0)
    fresh, truth = blobs(4, noise=4.0, seed=1)
    chosen = choose_lambda(noisy, labels)
    assert chosen in LAMBDAS
    assert chosen > LAMBDAS[0]
    clear, labels = blobs(4, noise=0.01)
    assert choose_lambda(clear, labels) == max(LAMBDAS), "of equals, the strongest"
    kept = accuracy(fit(noisy, labels, lambd=chosen), fresh, truth).top1
    assert kept >= accuracy(fit(noisy, labels, lambd=LAMBDAS[0]), fresh, truth).top1
    with pytest.raises(UserError, match=r"--lambd auto .* two labeled images"):
        choose_lambda(clear[:4], labels[:4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambd": 0.0}, "--lambd 0: must be"),
        ({"lambd": float("nan")}, "--lambd nan"),
        ({"lambd": 1.0, "solver": "sgd"}, "--solver sgd: must be cyanure, torch or sklearn"),
        ({"lambd": 1.0, "penalty": "l1"}, "torch knows l2; .* or --solver cyanure"),
        (
            {"lambd": 1.0, "penalty": "elastic-net", "solver": "cyanure"},
            "--penalty elastic-net: the solver cyanure knows l2 and l1",
        ),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(*blobs(3), **settings)  # type: ignore[arg-type]


def test_a_single_class() -> None:
    with pytest.raises(UserError, match="two classes or more, found 1"):
        fit(torch.eye(3), torch.ones(3, dtype=torch.int64), lambd=1.0)


def test_small_fits_take_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def solver(features: torch.Tensor, *_: object) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return features.new_zeros(2, features.shape[1])

    monkeypatch.setattr("msn.evaluation.logistic._lbfgs", solver)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for width in (8, 10**8 // 4, 10**8 // 4 + 1):  # times two samples, times two classes
            fit(torch.zeros(1, 1).expand(2, width), torch.tensor([0, 1]), lambd=1.0)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (threads, after) == ([1, 1, 2], 2)
