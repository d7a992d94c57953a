"""Experiments small enough for a test."""

from pathlib import Path
from typing import Any

import torch
import yaml

from msn.config.kinds import MSNConfig
from msn.data.batch import Views
from msn.data.loader import training_batches
from msn.data.order import Order
from msn.methods.msn.model import MSN
from msn.train.build import Parts, build_parts

TINY: dict[str, dict[str, Any]] = {
    "criterion": {"batch_size": 32, "num_proto": 8},
    "data": {
        "source": "digits",
        "rand_size": 8,
        "focal_size": 6,
        "focal_views": 2,
        "patch_drop": 0.25,
        "flip": 0.0,
        "num_workers": 0,
    },
    "logging": {"write_tag": "tiny", "log_freq": 4, "tensorboard": False},
    "meta": {
        "encoder": {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "hidden_dim": 24,
        "output_dim": 8,
        "precision": "fp32",
    },
    "optimization": {"epochs": 1, "warmup": 0.2},
}


def tiny_values(folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """The tiny experiment with its output in `folder`; changes are named SECTION__KEY."""
    return changed(TINY, folder, **changes)


def changed(
    experiment: dict[str, dict[str, Any]], folder: Path, **changes: Any
) -> dict[str, dict[str, Any]]:
    """An experiment with its output in `folder`; changes are named SECTION__KEY."""
    values = {section: dict(keys) for section, keys in experiment.items()}
    values["logging"]["folder"] = str(folder)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    return values


def tiny_config(folder: Path, **changes: Any) -> MSNConfig:
    return MSNConfig.model_validate(tiny_values(folder, **changes))


def write_tiny(path: Path, folder: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(tiny_values(folder, **changes)), encoding="utf-8")
    return path


def tiny_parts(folder: Path, **changes: Any) -> Parts:
    return build_parts(tiny_config(folder, **changes), torch.device("cpu"))


def batches(parts: Parts, batch_size: int, count: int) -> list[Views]:
    """The first normalized batches of a run."""
    order = Order(len(parts.source), batch_size, parts.steps_per_epoch, parts.seed)
    loaded = training_batches(
        parts.source, parts.views, order, start_step=0, stop_step=count, num_workers=0
    )
    return [batch.views.normalized(parts.mean, parts.std) for batch in loaded]


def msn_of(parts: Parts) -> MSN:
    """The method of a run that pre-trains with MSN."""
    assert isinstance(parts.model, MSN)
    return parts.model
