"""From a config to the parts of a run."""

from pathlib import Path

import torch

from msn.build import build_model, build_schedules, use_bf16
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


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)
    assert not use_bf16("auto", torch.device("mps"))
