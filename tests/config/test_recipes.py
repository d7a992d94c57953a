"""The shipped pre-training configs: the published settings, and plans that can be made."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.kinds import Config, MSNConfig
from msn.config.load import load, load_config
from msn.methods.msn.build import build_anchor
from msn.methods.msn.plan import patches_of
from msn.train.plan import describe

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
IMAGENET = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if path.stem.startswith(("msn_", "mae_", "simmim_"))
]
SHARED = load_config(CONFIGS / "msn_vits16.yaml").model_dump()

# Model, epochs, mask ratio, kept patches with the class token, global batch: paper A.1, tables 1
# and 8; for B/4 the batch of the posted configuration.
PUBLISHED = {
    "msn_vits16": ("deit_small", 800, 0.15, 167, 1024),
    "msn_vitb16": ("deit_base", 600, 0.3, 138, 1024),
    "msn_vitl16": ("deit_large", 600, 0.5, 99, 1024),
    "msn_vitb8": ("deit_base_p8", 600, 0.3, 549, 1024),
    "msn_vitb4": ("deit_base_p4", 300, 0.7, 941, 1152),
    "msn_vitl7": ("deit_large_p7", 200, 0.7, 308, 1024),
}


def changes(name: str) -> dict[str, Any]:
    """Keys whose value is not that of ViT-S/16."""
    dumped = load_config(CONFIGS / f"{name}.yaml").model_dump()
    return {
        f"{section}.{key}": value
        for section, values in dumped.items()
        for key, value in values.items()
        if value != SHARED[section][key] and section != "logging"
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_the_paper(name: str) -> None:
    model, epochs, drop, tokens, batch = PUBLISHED[name]
    config = load(MSNConfig, CONFIGS / f"{name}.yaml")
    assert (config.meta.model_name, config.optimization.epochs) == (model, epochs)
    assert config.data.patch_drop == drop
    with torch.device("meta"):
        patches = patches_of(build_anchor(config, 3), config.data.rand_size)
    assert 1 + int(patches * (1.0 - drop)) == tokens
    assert config.criterion.batch_size
    assert batch % config.criterion.batch_size == 0
    free = {"meta.model_name", "optimization.epochs", "data.patch_drop", "criterion.batch_size"}
    assert set(changes(name)) <= free  # all else is what the models share


def test_variants_of_vit_s() -> None:
    assert changes("msn_vits16_nosinkhorn") == {
        "criterion.use_sinkhorn": False,
        "criterion.memax_weight": 5.0,
    }
    assert changes("msn_vits16_retuned") == {
        "criterion.use_sinkhorn": False,
        "criterion.memax_weight": 4.0,
        "criterion.num_proto": 4096,
        "data.patch_drop": 0.2,
        "data.rand_crop_scale": (0.25, 1.0),
        "data.focal_crop_scale": (0.08, 0.25),
        "meta.drop_path_rate": 0.1,
        "meta.hidden_dim": 1024,
        "optimization.warmup": 20.0,
        "optimization.start_lr": 0.0,
        "optimization.lr": 0.002,
        "optimization.final_lr": 1e-5,
        "optimization.clip_grad": 1.0,
        "optimization.schedule_stretch": 1.0,
    }


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
@pytest.mark.slow
def test_plans_can_be_made_and_runs_do_not_share_a_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for image in range(256):
        (tmp_path / "train" / f"{image}.png").touch()  # a plan reads names only
    config = load_config(path, [f"data.root_path={tmp_path}"])
    assert isinstance(config, Config)
    assert Path(config.logging.folder).name == path.stem
    plan = describe(config, torch.device("cpu"))
    assert f"{config.optimization.epochs} epochs" in plan
    assert re.search(r"\nFLOPs +\d.*\nactivations +about \d", plan)


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_headers_say_what_to_expect_and_how_to_run(path: Path) -> None:
    header = path.read_text("utf-8").split("\ncriterion:")[0]
    for part in ("Expected:", "Batch:", f"--fname configs/pretrain/{path.name} "):
        assert part in header
