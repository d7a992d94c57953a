"""MAE in the trainer; its arithmetic is compared with golden numbers in tests/golden."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.kinds import MAEConfig
from msn.config.load import load_config
from msn.data.batch import Views
from msn.methods import method_of
from msn.methods.image_method import IMAGE
from msn.methods.mae import MAE
from msn.runtime.errors import UserError
from msn.train.build import build_parts
from tests.support.experiments import changed

VALUES: dict[str, dict[str, Any]] = {
    "criterion": {"batch_size": 8, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    "data": {"source": "digits", "image_size": 16, "num_workers": 0},
    "logging": {},
    "meta": {
        "method": "mae",
        "encoder": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "precision": "fp32",
    },
    "optimization": {"epochs": 4, "warmup": 1, "lr": 0.01},
}


def mae_config(folder: Path, **changes: Any) -> MAEConfig:
    """A tiny run; changes are named SECTION__KEY."""
    return MAEConfig.model_validate(changed(VALUES, folder, **changes))


def built(config: MAEConfig) -> MAE:
    torch.manual_seed(0)
    model = MAE.build(config, 1, 10).double()
    assert isinstance(model, MAE)
    return model


def test_a_batch_in_parts_has_the_same_loss_and_gradients(tmp_path: Path) -> None:
    images = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    whole, parts = (built(mae_config(tmp_path, optimization__accumulate=count)) for count in (1, 4))
    losses = [model(Views({IMAGE: images[None]}), step=3).loss for model in (whole, parts)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for (name, one), (_, other) in zip(
        whole.named_parameters(), parts.named_parameters(), strict=True
    ):
        if one.requires_grad:
            assert one.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_each_image_and_each_step_has_a_mask_of_its_own(tmp_path: Path) -> None:
    model = built(mae_config(tmp_path))
    images = torch.zeros(8, 1, 16, 16)
    masks = [model.draw_kept(images, step).masked for step in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert (masks[0].sum(dim=1) == 12).all()
    assert len({tuple(mask.tolist()) for mask in masks[0]}) > 4


def test_what_is_optimized(tmp_path: Path) -> None:
    model = built(mae_config(tmp_path))
    groups = model.parameter_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {"backbone.cls_token", "decoder.mask_token"} <= decayed
    assert all(name.endswith("bias") or ".norm" in name for name in others)
    assert {group["betas"] for group in groups} == {(0.9, 0.95)}
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"backbone.pos_embed", "decoder.pos_embed"}
    assert not fixed & (decayed | others)


def test_the_rate_of_the_first_update_is_0(tmp_path: Path) -> None:
    config = mae_config(tmp_path, optimization__lr_batch=256)
    rate = MAE.schedules(config, 10, 64).learning_rate  # read at the step that comes next
    for step in range(40):
        peak = 0.01 * 64 / 256
        progress = (step - 10) / 30
        expected = peak * step / 10 if step < 10 else peak * (1 + math.cos(math.pi * progress)) / 2
        assert rate(step + 1) == pytest.approx(expected, rel=1e-12, abs=1e-15), step


def test_the_recipe_of_the_digits(tmp_path: Path) -> None:
    config = load_config("configs/digits_mae.yaml", [f"logging.folder={tmp_path}"])
    assert method_of(config) is MAE
    with pytest.raises(UserError, match=r"criterion\.decoder_dim: 32 is not.*decoder_heads 5"):
        load_config("configs/digits_mae.yaml", ["criterion.decoder_heads=5"])
    with pytest.raises(UserError, match=r"data\.image_size: 18 is not a multiple of the patch"):
        load_config("configs/digits_mae.yaml", ["data.image_size=18"])


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = json.loads(Path("configs/schema_mae.json").read_text())
    how = "run: python -m msn.config mae > configs/schema_mae.json"
    assert shipped == json.loads(json.dumps(MAEConfig.json_schema())), how


def test_the_decoder_of_mae_computes_attention_as_its_encoder(tmp_path: Path) -> None:
    """In bfloat16 on a CPU the backward pass of fused attention takes several times as long."""
    for precision, fused in (("bf16", False), ("fp32", True)):
        parts = build_parts(mae_config(tmp_path, meta__precision=precision), torch.device("cpu"))
        assert isinstance(parts.model, MAE)
        blocks = [*parts.model.encoder.blocks, *parts.model.decoder.blocks]
        assert [block.attn.fused_attn for block in blocks] == [fused] * 3
