"""From a config to the parts of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msn.data.draws import ViewKind
from msn.data.sources.digits import Digits
from msn.methods.msn.build import loss_settings
from msn.methods.msn.losses import LossSettings
from msn.models.masking import Masking
from msn.runtime.devices import use_bf16
from msn.train.build import Batch
from tests.support.experiments import msn_of, tiny_config, tiny_parts


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
    assert loss_settings(config) == LossSettings(
        temperature=0.2,
        sinkhorn_iterations=0,
        memax_weight=0.0,
        ent_weight=0.3,
        label_smoothing=0.1,
    )


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)
    assert not use_bf16("auto", torch.device("mps"))


SETTINGS: dict[str, Any] = {
    "criterion__memax_weight": 2.0,
    "criterion__sinkhorn_iterations": 5,
    "criterion__ent_weight": 0.3,
    "criterion__prior": "power_law",
    "criterion__freeze_proto": True,
    "data__rand_views": 2,
    "data__focal_views": 3,
    "data__rand_crop_scale": [0.4, 0.9],
    "data__focal_crop_scale": [0.1, 0.2],
    "data__flip": 0.1,
    "data__color_jitter": 0.2,
    "data__color_jitter_strength": 0.6,
    "data__grayscale": 0.3,
    "data__blur": 0.4,
    "data__augment_on": "device",
    "data__patch_drop": 0.5,
    "data__mask_scope": "image",
    "data__mean": [0.25],
    "data__std": [0.75],
    "meta__drop_path_rate": 0.3,
    "meta__use_bn": False,
    "meta__seed": 7,
    "optimization__clip_grad": 1.5,
    "optimization__epochs": 3,
    "optimization__accumulate": 2,
}


def test_every_setting_reaches_its_part(tmp_path: Path) -> None:
    """Each value differs from the default and from all others that it could be taken for."""
    parts = tiny_parts(tmp_path, **SETTINGS)
    assert parts.views.kinds == (
        ViewKind("target", 1, 8, (0.4, 0.9)),
        ViewKind("random", 2, 8, (0.4, 0.9)),
        ViewKind("focal", 3, 6, (0.1, 0.2)),
    )
    drawn = parts.views.augmentation
    assert (drawn.flip, drawn.grayscale, drawn.blur) == (0.1, 0.3, 0.4)
    assert (drawn.color_jitter, drawn.color_jitter_strength) == (0.2, 0.6)
    assert parts.views.on_device
    model = msn_of(parts)
    assert model.loss_settings.memax_weight == 2.0
    assert model.loss_settings.sinkhorn_iterations == 5
    assert model.loss_settings.ent_weight == 0.0  # as use_ent is off
    power_law = torch.arange(1, 9).double() ** -0.25
    torch.testing.assert_close(
        model.log_prior.exp(), power_law / power_law.sum(), check_dtype=False
    )
    assert not model.prototypes.requires_grad
    assert model.masking == Masking(0.5, "image", 7)
    assert (model.accumulate, parts.seed) == (2, 7)
    assert [block.drop_path1.drop_prob for block in model.anchor.blocks[1:]] == [0.3]
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    assert (parts.mean.tolist(), parts.std.tolist()) == ([0.25], [0.75])
    assert parts.clip_grad == 1.5
    assert parts.batch == Batch(32, 2, 1)
    assert (parts.steps_per_epoch, parts.total_steps) == (20, 60)


def test_statistics_are_those_of_the_source_if_not_given(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path)
    assert parts.mean.tolist() == pytest.approx([Digits.MEAN])
    assert parts.std.tolist() == pytest.approx([Digits.STD])
