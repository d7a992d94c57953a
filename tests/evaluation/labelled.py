"""Supervised runs on the digits, small enough for a test."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from msn import checkpoint
from msn.data.sources.digits import Digits
from msn.models.encoder import EncoderSize, build_encoder

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


def write(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def killed_at(words: list[str], steps: int) -> None:
    """Run `python -m msn WORDS` up to a step, then `kill -9` it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "msn", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None
    for line in process.stdout:
        logged = re.search(r"step (\d+)/", line)
        if logged and int(logged[1]) >= steps:
            process.send_signal(signal.SIGKILL)
            break
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Bit for bit, whatever the nesting; configs aside."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in set(a) - {"config"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
