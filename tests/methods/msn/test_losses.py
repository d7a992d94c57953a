"""The loss against plain loops and its own laws. Official numbers: tests/golden/test_losses.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msn.methods.msn.losses import (
    LossSettings,
    kl_to_prior,
    log_mean,
    log_prior,
    log_sinkhorn,
    msn_losses,
    unit,
)
from tests.reference import loss as naive

SIZES = st.tuples(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(2, 6),
    st.integers(2, 4),
    st.integers(0, 2**31),
)


def draw(size: tuple[int, int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, views, prototypes, width, seed = size
    rows = torch.randn(
        images * (views + 1) + prototypes,
        width,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    anchors, targets, centers = rows.split([images * views, images, prototypes])
    return anchors, targets, centers


@settings(max_examples=60, deadline=None)
@given(SIZES, st.floats(0.2, 1), st.floats(0.3, 1), st.integers(0, 4), st.floats(0, 2))
def test_equals_the_loop_of_the_paper(
    size: tuple[int, int, int, int, int],
    temperature: float,
    sharpening: float,
    iterations: int,
    exponent: float,
) -> None:
    anchors, targets, prototypes = draw(size)
    prior = log_prior(len(prototypes), exponent=exponent)
    losses = msn_losses(
        anchors,
        targets,
        prototypes,
        LossSettings(
            temperature=temperature,
            sinkhorn_iterations=iterations,
            memax_weight=0.7,
            ent_weight=0.3,
        ),
        sharpening=sharpening,
        log_prior=prior,
    )
    expected = naive.msn(
        anchors.tolist(),
        targets.tolist(),
        prototypes.tolist(),
        prior.exp().tolist(),
        temperature=temperature,
        sharpening=sharpening,
        sinkhorn_iterations=iterations,
        memax_weight=0.7,
        ent_weight=0.3,
    )
    assert float(losses.total) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert float(losses.regularizer) >= -1e-12


def test_gradient_is_that_of_finite_differences() -> None:
    anchors, targets, prototypes = draw((4, 2, 5, 3, 7))

    def total(anchors: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        # The target branch carries no gradient: hold its prototypes still.
        fixed = prototypes.detach()
        losses = msn_losses(
            anchors,
            targets,
            prototypes,
            LossSettings(temperature=0.3, sinkhorn_iterations=3, memax_weight=0.7, ent_weight=0.3),
            sharpening=1e3,  # targets all but uniform, so they hardly follow the prototypes
            log_prior=log_prior(len(fixed), exponent=0.5),
        )
        return losses.total

    inputs = (anchors.requires_grad_(), prototypes.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs, atol=2e-3, rtol=1e-3)


@given(SIZES, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_sinkhorn_rows_are_distributions_and_columns_near_even(
    size: tuple[int, int, int, int, int], iterations: int
) -> None:
    _, targets, prototypes = draw(size)
    log_p = (targets @ prototypes.T).log_softmax(dim=1)
    once, often = log_sinkhorn(log_p, iterations), log_sinkhorn(log_p, 200)
    torch.testing.assert_close(once.exp().sum(dim=1), torch.ones(len(once), dtype=torch.float64))
    even = torch.full((len(prototypes),), len(targets) / len(prototypes), dtype=torch.float64)
    torch.testing.assert_close(often.exp().sum(dim=0), even, atol=1e-3, rtol=0)


def test_direction_of_the_prior_divergence() -> None:
    """KL(mean || prior), not the reverse, which another library takes for PMSN."""
    mean = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    prior = log_prior(3, exponent=0.25)
    pi = [k**-0.25 for k in (1, 2, 3)]
    pi = [value / sum(pi) for value in pi]
    expected = sum(m * math.log(m / q) for m, q in zip(mean.tolist(), pi, strict=True))
    reverse = sum(q * math.log(q / m) for m, q in zip(mean.tolist(), pi, strict=True))
    own = float(kl_to_prior(mean.log(), prior))
    assert own == pytest.approx(expected)
    assert abs(own - reverse) > 0.01


def test_a_uniform_prior_is_mean_entropy_maximization() -> None:
    log_p = torch.randn(6, 5, dtype=torch.float64).log_softmax(dim=1)
    mean = log_p.exp().mean(dim=0)
    entropy = -(mean * mean.log()).sum()
    own = kl_to_prior(log_mean(log_p), log_prior(5))
    torch.testing.assert_close(own, math.log(5) - entropy)


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_unit_rows_have_length_one_whatever_their_size(values: list[float]) -> None:
    row = torch.tensor([values])
    length = float(torch.linalg.vector_norm(row.double()))
    expected = 1.0 if length >= 1e-12 else length / 1e-12
    assert float(torch.linalg.vector_norm(unit(row))) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_huge_row_leaves_the_others_alone() -> None:
    rows = torch.tensor([[1e30, -1e30], [1e-10, 1e-10]])
    lengths = torch.linalg.vector_norm(unit(rows), dim=1)
    torch.testing.assert_close(lengths, torch.ones(2))


def test_targets_and_their_features_get_no_gradient() -> None:
    anchors, targets, prototypes = draw((4, 2, 5, 3, 1))
    targets.requires_grad_()
    losses = msn_losses(
        anchors.requires_grad_(),
        targets,
        prototypes,
        LossSettings(temperature=0.1, sinkhorn_iterations=3),
        sharpening=0.25,
        log_prior=log_prior(5),
    )
    losses.total.backward()
    assert targets.grad is None
    assert not losses.log_targets.requires_grad
    assert not losses.log_mean_assignment.requires_grad


def test_rows_that_do_not_pair_up_are_refused() -> None:
    anchors, targets, prototypes = draw((4, 2, 5, 3, 1))
    with pytest.raises(ValueError, match="7 anchor rows are no multiple of 4 targets"):
        msn_losses(
            anchors[:7],
            targets,
            prototypes,
            LossSettings(temperature=0.1, sinkhorn_iterations=3),
            sharpening=0.25,
            log_prior=log_prior(5),
        )
