import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msn.methods.health import (
    assignment_entropy,
    feature_std,
    prototypes_in_use,
    rankme,
    verdict,
)


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def judge(features: torch.Tensor, mean_probs: torch.Tensor) -> str | None:
    return verdict(
        feature_std=float(feature_std(features)),
        rankme=float(rankme(features)),
        proto_entropy=float(assignment_entropy(mean_probs)),
        images=len(features),
    )


@given(st.integers(1, 12), st.floats(0.01, 100))
def test_rankme_of_equal_directions_is_their_number(rank: int, scale: float) -> None:
    rotation = torch.linalg.qr(gaussian(16, 16)).Q
    features = scale * torch.eye(24, 16)[:, :rank] @ rotation[:rank]
    assert float(rankme(features)) == pytest.approx(rank, rel=1e-3)


def test_rankme_of_unequal_directions_is_the_exponential_of_their_entropy() -> None:
    p = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert float(rankme(3 * torch.diag(torch.tensor(p)))) == pytest.approx(expected, rel=1e-4)


def test_feature_std_of_noise_is_one_and_of_copies_zero() -> None:
    assert float(feature_std(gaussian(4096, 32))) == pytest.approx(1, abs=0.01)
    assert float(feature_std(gaussian(1, 32).expand(64, 32))) == pytest.approx(0, abs=1e-6)
    # Lengths do not count.
    lengths = torch.linspace(0.1, 10, 64)[:, None]
    assert float(feature_std(gaussian(1, 32) * lengths)) == pytest.approx(0, abs=1e-6)


def test_feature_std_by_hand() -> None:
    features = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    assert float(feature_std(features)) == pytest.approx(0.1 * math.sqrt(2))


def test_assignment_entropy() -> None:
    assert float(assignment_entropy(torch.full((7,), 1 / 7))) == pytest.approx(math.log(7))
    assert float(assignment_entropy(torch.tensor([0.0, 1.0, 0.0]))) == 0
    mixed = torch.tensor([0.25, 0.75])
    assert float(assignment_entropy(mixed)) == pytest.approx(0.5623351)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_prototypes_in_use_counts_distinct_first_choices(choices: list[int]) -> None:
    probs = torch.nn.functional.one_hot(torch.tensor(choices), 10) * 0.9 + 0.01
    assert float(prototypes_in_use(probs)) == len(set(choices))


def test_measures_carry_no_graph_and_take_low_precision() -> None:
    features = gaussian(8, 4).bfloat16().requires_grad_()
    for value in (rankme(features), feature_std(features), assignment_entropy(features.softmax(0))):
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert not value.requires_grad


UNIFORM = torch.full((24,), 1 / 24)


def test_a_live_representation_is_left_alone() -> None:
    assert judge(gaussian(64, 32), UNIFORM) is None
    # Two classes at opposite ends are the least that is alive.
    sides = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    two = torch.cat([(1 + sides) / 2, (1 - sides) / 2], dim=1)
    assert judge(two, torch.tensor([0.5, 0.5])) is None


def test_features_all_the_same() -> None:
    warning = judge(gaussian(1, 32) + 1e-4 * gaussian(64, 32), UNIFORM)
    assert warning
    assert warning.startswith("the representation has collapsed: feature std 9.79e-05 (")
    assert "optimization.lr" in warning


def test_features_along_a_line() -> None:
    sides = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    warning = judge(sides * gaussian(1, 32), UNIFORM)
    assert warning
    assert "RankMe 1 " in warning
    assert "criterion.memax_weight" in warning


def test_a_single_prototype() -> None:
    warning = judge(gaussian(64, 32), torch.tensor([0.999, *[0.001 / 23] * 23]))
    assert warning
    assert "1.01 effectively in use" in warning
    assert "criterion.num_proto" in warning


@pytest.mark.parametrize(
    ("name", "threshold"), [("feature_std", 0.05), ("rankme", 1.5), ("proto_entropy", 0.4054651)]
)
def test_thresholds(name: str, threshold: float) -> None:
    healthy = {"feature_std": 0.9, "rankme": 20.0, "proto_entropy": 3.0}

    def ask(value: float, images: int = 64) -> str | None:
        return verdict(images=images, **{**healthy, name: value})

    assert ask(threshold * 1.001) is None
    warning = ask(threshold * 0.999)
    assert warning
    assert "\n" not in warning
    assert ask(0.0, images=7) is None
    assert ask(0.0, images=8)
