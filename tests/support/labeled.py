"""Supervised runs on the digits, small enough for a test."""

from pathlib import Path
from typing import Any

import torch
import yaml

from msn.config.sizes import EncoderSize
from msn.data.sources.digits import Digits
from msn.models.vit import build_encoder
from msn.runtime import checkpoint
from tests.support.sources import opened

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DIGITS = {
    "source": "digits",
    "num_workers": 0,
    "image_size": 8,
    "crop_scale": [0.9, 1.0],
    "flip": 0.0,
}


def pretrained(folder: Path) -> Path:
    """A checkpoint whose encoder was not trained, but drawn wide enough to tell digits apart."""
    size = EncoderSize(patch_size=4, embed_dim=48, depth=2, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(size, image_size=8, in_chans=1)
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    state = {
        "target_encoder": encoder.state_dict(),
        "mean": [Digits.MEAN],
        "std": [Digits.STD],
        "config": {"meta": {"encoder": size._asdict()}},  # the heads are not to be seen
    }
    checkpoint.save(folder / "pretrained.pth.tar", state)
    return folder / "pretrained.pth.tar"


def values(weights: Path, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """What linear evaluation and fine-tuning have in common; changes are named SECTION__KEY."""
    sections: dict[str, dict[str, Any]] = {
        "data": dict(DIGITS),
        "logging": {
            "folder": str(folder),
            "write_tag": "run",
            "pretrain_path": str(weights),
            "log_freq": 1,
        },
        "meta": {"precision": "fp32"},
        "optimization": {"epochs": 2, "batch_size": 64},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    return sections


def listed(path: Path, indices: range) -> str:
    """Write a list of training images, as `data.subset` takes it; its path."""
    source = opened({"source": "digits"})
    path.write_text("\n".join(source.name(index) for index in indices), encoding="utf-8")
    return str(path)


def write(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path
