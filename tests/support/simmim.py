"""SimMIM runs small enough for a test."""

from pathlib import Path
from typing import Any

from msn.config.kinds import SimMIMConfig
from tests.support.experiments import changed

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
RESNET = {"block": "basic", "layers": [1, 1, 1, 1], "width": 4}
TINY: dict[str, dict[str, Any]] = {
    "criterion": {"batch_size": 32, "mask_unit": 8},
    "data": {"source": "digits", "image_size": 32, "num_workers": 0, "flip": 0.0},
    "logging": {"write_tag": "tiny", "log_freq": 4, "tensorboard": False},
    "meta": {"method": "simmim", "encoder": VIT, "precision": "fp32"},
    "optimization": {"epochs": 1, "warmup": 0.2, "lr": 0.01, "schedule": "cosine"},
}


def simmim_config(folder: Path, **changes: Any) -> SimMIMConfig:
    """The tiny experiment with its output in `folder`; changes are named SECTION__KEY."""
    return SimMIMConfig.model_validate(changed(TINY, folder, **changes))
