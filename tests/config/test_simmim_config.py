"""SimMIM's own keys, and what of them cannot go together."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from msn.config.kinds import SimMIMConfig
from msn.config.load import load_config
from msn.runtime.errors import UserError
from tests.support.experiments import changed
from tests.support.simmim import RESNET, TINY, simmim_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"criterion__mask_unit": 6}, "does not divide data.image_size 32"),
        ({"criterion__mask_unit": 2}, "no multiple of the 4 px"),
        ({"criterion__mask_unit": 32}, "masks all 1 squares"),
        ({"criterion__variant": "a2mim"}, "a2mim is for ResNets"),
        ({"meta__encoder": RESNET, "data__image_size": 48}, "48 is not a multiple of the 32 px"),
        (
            {"meta__encoder": RESNET, "criterion__token_stage": 2, "criterion__fill": "none"},
            "none shows the masked pixels to the stages before stage 2",
        ),
        ({"meta__model_name": "vitc_4gf", "meta__encoder": None}, "no patches to mask"),
        ({"optimization__milestones": [3, 2]}, "do not grow"),
    ],
)
def test_what_cannot_be(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        simmim_config(tmp_path, **changes)
    assert said in str(refused.value)


def test_defaults_are_the_official_vit() -> None:
    config = SimMIMConfig.model_validate(
        {"data": {"source": "digits"}, "logging": {"folder": "x"}, "meta": {"method": "simmim"}}
    )
    criterion, opt = config.criterion, config.optimization
    assert (criterion.mask_unit, criterion.mask_ratio, criterion.pixel_loss) == (32, 0.6, ("l1", 0))
    assert (opt.lr, opt.lr_batch, opt.start_lr, opt.warmup) == (1e-4, 512, 5e-7, 10)
    assert (opt.schedule, opt.milestones, opt.gamma) == ("multistep", (700,), 0.1)
    assert (opt.weight_decay, opt.final_weight_decay, opt.clip_grad) == (0.05, 0.05, 5.0)
    assert (config.meta.positions, config.meta.layer_scale) == ("shared", 0.1)


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    config = simmim_config(tmp_path)
    path = tmp_path / "written.yaml"
    path.write_text(config.dump_yaml(), encoding="utf-8")
    assert load_config(path) == config
    assert not any("without effect" in notice for notice in load_config(path).notices())


def test_keys_of_other_methods_are_named(tmp_path: Path) -> None:
    values = changed(TINY, tmp_path)
    values["criterion"]["num_proto"] = 8
    values["optimization"]["ema"] = [0.9, 1.0]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_config(path)
    for key in ("criterion.num_proto", "optimization.ema"):
        assert f"{key}: unknown key; it is one of meta.method: msn; remove it" in str(refused.value)
    path.write_text("data: {source: digits, crop_scale: [0.5, 1]}\nlogging: {folder: runs/a}\n")
    with pytest.raises(UserError, match=r"data\.crop_scale: .* of meta.method: mae and simmim"):
        load_config(path)


def test_schema_file_is_current() -> None:
    shipped = json.loads((CONFIGS / "schema_simmim.json").read_text())
    how = "run: python -m msn.config simmim > configs/schema_simmim.json"
    assert shipped == json.loads(json.dumps(SimMIMConfig.json_schema())), how
