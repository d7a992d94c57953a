"""Parameter groups, the hyperparameters of a step, and the guard against what is not finite."""

import pytest
import torch
from torch import nn

from msn.config.sizes import ENCODERS
from msn.methods.msn.build import parameter_groups
from msn.methods.optim import (
    FiniteGuard,
    build_optimizer,
    set_hyperparameters,
    step_unless,
)
from msn.models.head import projection_head
from msn.models.vit import build_encoder


@pytest.mark.parametrize("name", ["deit_tiny", "vitc_4gf"])
@pytest.mark.parametrize("trained", [True, False])
def test_each_parameter_is_in_exactly_one_group(name: str, trained: bool) -> None:
    with torch.device("meta"):
        encoder = build_encoder(
            ENCODERS[name], head=projection_head(ENCODERS[name].embed_dim, 8, 4, batch_norm=True)
        )
        prototypes = nn.Parameter(torch.empty(4, 4), requires_grad=trained)
    grouped = [p for group in parameter_groups(encoder, prototypes) for p in group["params"]]
    expected = [*encoder.parameters(), *([prototypes] if trained else [])]
    assert len(grouped) == len(expected)
    assert {id(p) for p in grouped} == {id(p) for p in expected}


def test_only_the_first_group_is_decayed() -> None:
    encoder = build_encoder(ENCODERS["deit_tiny"])
    optimizer = build_optimizer(parameter_groups(encoder, nn.Parameter(torch.ones(4, 4))))
    set_hyperparameters(optimizer, learning_rate=0.5, weight_decay=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]


def test_fused_adamw_equals_the_formula() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    layer = nn.Module()
    layer.weight = weight
    optimizer = build_optimizer(parameter_groups(layer, nn.Parameter(torch.ones(1, 1))))
    expected, first, second = weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(1, 4):
        gradient = torch.tensor([[0.3, -0.1]], dtype=torch.float64) * step
        weight.grad = gradient.clone()
        set_hyperparameters(optimizer, learning_rate=0.01, weight_decay=0.2)
        step_unless(optimizer, torch.tensor(0.0))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected = expected * (1 - 0.01 * 0.2)
        debiased = (second / (1 - 0.999**step)).sqrt() + 1e-8
        expected = expected - 0.01 * first / (1 - 0.9**step) / debiased
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_guard_remembers_the_first_step_that_is_not_finite(bad: float) -> None:
    guard = FiniteGuard(torch.device("cpu"))
    fine, broken = torch.tensor(1.0), torch.tensor(bad)
    assert float(guard.update(3, fine, fine)) == 0
    assert guard.first_bad_step() is None
    assert float(guard.update(4, fine, broken)) == 1
    assert float(guard.update(5, broken, fine)) == 1
    assert float(guard.update(6, fine, fine)) == 1  # once broken, no further step is taken
    assert guard.first_bad_step() == 4


def test_a_bad_step_changes_neither_weights_nor_moments() -> None:
    layer = nn.Linear(3, 3)
    optimizer = build_optimizer(parameter_groups(layer, nn.Parameter(torch.ones(1, 1))))
    set_hyperparameters(optimizer, learning_rate=0.1, weight_decay=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    step_unless(optimizer, torch.tensor(0.0))
    weight = layer.weight.detach().clone()
    moments = {key: value.clone() for key, value in optimizer.state[layer.weight].items()}
    assert layer.weight.grad is not None
    layer.weight.grad.fill_(float("nan"))
    step_unless(optimizer, torch.tensor(1.0))
    assert torch.equal(layer.weight.detach(), weight)
    for key, value in optimizer.state[layer.weight].items():
        assert torch.equal(value, moments[key]), key
