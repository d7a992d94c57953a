"""From a config to the parts of a run."""

from pathlib import Path

import pytest
import torch

from msn.build import build_model, build_schedules, read_log_prior, use_bf16
from msn.config import PowerLaw
from msn.errors import UserError
from tests.experiments import tiny_config, tiny_parts


def test_the_same_seed_builds_the_same_weights_whatever_was_drawn_before(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = tiny_parts(tmp_path).model.state_dict()
    torch.randn(3)
    state = torch.get_rng_state()
    second = tiny_parts(tmp_path).model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = tiny_parts(tmp_path, meta__seed=1).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["prototypes"], other["prototypes"])
    assert torch.equal(first["anchor.pos_embed"], first["target.pos_embed"])


def test_settings_reach_the_loss(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        criterion__use_sinkhorn=False,
        criterion__me_max=False,
        criterion__use_ent=True,
        criterion__ent_weight=0.3,
        criterion__temperature=0.2,
        data__label_smoothing=0.1,
    )
    settings = build_model(config, build_schedules(config, 10), channels=1).loss_settings
    assert settings == {
        "temperature": 0.2,
        "sinkhorn_iterations": 0,
        "memax_weight": 0.0,
        "ent_weight": 0.3,
        "label_smoothing": 0.1,
    }


def test_priors(tmp_path: Path) -> None:
    uniform = read_log_prior("uniform", 4).exp()
    torch.testing.assert_close(uniform, torch.full((4,), 0.25, dtype=torch.float64))
    weights = torch.tensor([1.0, 2**-0.5, 3**-0.5], dtype=torch.float64)
    power = read_log_prior(PowerLaw(power_law=0.5), 3).exp()
    torch.testing.assert_close(power, weights / weights.sum())
    file = tmp_path / "prior.txt"
    file.write_text("3\n1 4\n")
    own = read_log_prior(str(file), 3).exp()
    torch.testing.assert_close(own, torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64) / 8)


@pytest.mark.parametrize("content", ["1 2", "1 2 0", "1 2 -3", "1 2 nan", "1 2 x", "1 2 3 4"])
def test_a_prior_file_must_hold_k_positive_weights(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prior.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=r"criterion\.prior .*prior\.txt"):
        read_log_prior(str(file), 3)


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)
    assert not use_bf16("auto", torch.device("mps"))
