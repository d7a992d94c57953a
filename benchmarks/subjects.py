"""What the benchmarks compare: a training step of the plain baseline, of lightly's, and ours twice.

All take the same uint8 views and keep the same patches.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from baseline import Baseline, Settings
from measure import Step

from msn.config.kinds import MSNConfig
from msn.config.load import load
from msn.config.sizes import ENCODERS
from msn.data.batch import Views
from msn.methods.msn.model import FOCAL, MSN, RANDOM, TARGET, views_of
from msn.train.build import Parts, build_parts, share_out
from msn.train.step import train_step

CONFIGS = Path(__file__).parents[1] / "configs/pretrain"
MODELS = {  # the recipes, with the masks of the paper
    "vits16": "msn_vits16.yaml",
    "vitb16": "msn_vitb16.yaml",
    "vitl16": "msn_vitl16.yaml",
    "vitb8": "msn_vitb8.yaml",
}
OURS = ("ours", "compiled")
NAMES = ("baseline", "lightly", *OURS)


def recipe(model: str, images: int, *changes: str) -> MSNConfig:
    """A published recipe; random pixels stand for its images, so the data set is any."""
    settings = [f"criterion.batch_size={images}", "data.source=digits", "data.channels=3"]
    return load(MSNConfig, CONFIGS / MODELS[model], [*settings, *changes])


def random_views(config: MSNConfig, device: torch.device) -> Views:
    """One batch of uint8 noise, of the sizes and numbers of the config."""
    data, images = config.data, share_out(config, 1).own
    generator = torch.Generator().manual_seed(0)

    def pixels(*views: int, size: int) -> torch.Tensor:
        shape = (*views, images, size, size, 3)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)

    return views_of(
        pixels(size=data.rand_size),
        pixels(data.rand_views, size=data.rand_size),
        pixels(data.focal_views, size=data.focal_size),
    )


def settings_of(parts: Parts, config: MSNConfig) -> Settings:
    """The sizes and statistics of a run for those that do not read configs."""
    assert config.meta.model_name
    size = ENCODERS[config.meta.model_name]
    assert size.patch_size
    return Settings(
        image_size=config.data.rand_size,
        patch_size=size.patch_size,
        width=size.embed_dim,
        depth=size.depth,
        heads=size.num_heads,
        mean=tuple(parts.mean.tolist()),
        std=tuple(parts.std.tolist()),
    )


def msn_of(parts: Parts) -> MSN:
    """The method of our run."""
    assert isinstance(parts.model, MSN)
    return parts.model


def in_order(views: Views) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target (B, ...), random and focal views, as the others take them."""
    return views[TARGET][0], views[RANDOM], views[FOCAL]


def kept_patches(parts: Parts, views: Views, step: int) -> torch.Tensor:
    """The patches that our model keeps at a step, for the others to keep the same."""
    channels_first = views.each(lambda kind: kind.movedim(-1, -3))
    (keep,) = msn_of(parts).draw_keep(channels_first, step)
    assert keep is not None
    return keep


def same_start(parts: Parts, config: MSNConfig) -> Baseline:
    """A baseline with the weights of `parts`."""
    schedules = parts.schedules
    baseline = Baseline(
        settings_of(parts, config),
        lr=schedules.learning_rate(1),
        weight_decay=schedules.weight_decay(1),
        device=parts.device,
    )
    baseline.anchor.load_state_dict(msn_of(parts).anchor.state_dict())
    baseline.target.load_state_dict(msn_of(parts).target.state_dict())
    with torch.no_grad():
        baseline.prototypes.copy_(msn_of(parts).prototypes)
    return baseline


@torch.no_grad()
def fp32_losses(parts: Parts, baseline: Baseline, views: Views) -> tuple[float, float]:
    """The loss of the baseline and ours, on the same weights, views and patches."""
    ours = parts.model(views.normalized(parts.mean, parts.std), step=0).loss
    return baseline.loss(*in_order(views), kept_patches(parts, views, 0)).item(), ours.item()


def step_of(name: str, parts: Parts, config: MSNConfig, views: Views) -> Step:
    """The training step of one of `NAMES`. `parts` are trained by ours, else asked for patches."""
    if name == "compiled":
        meta = config.meta.model_copy(update={"compile": True})
        parts = build_parts(config.model_copy(update={"meta": meta}), parts.device)
    if name in OURS:
        return lambda step: train_step(parts, views.normalized(parts.mean, parts.std), step)
    other = same_start(parts, config) if name == "baseline" else _lightly(parts, config)
    momentum = msn_of(parts).momentum
    return lambda step: other.step(
        *in_order(views), kept_patches(parts, views, step), momentum(step)
    )


def _lightly(parts: Parts, config: MSNConfig) -> Any:
    from lightly_msn import LightlyMSN

    return LightlyMSN(
        settings_of(parts, config),
        lr=parts.schedules.learning_rate(1),
        weight_decay=parts.schedules.weight_decay(1),
        device=parts.device,
    )


def step_parser(description: str, *, model: str, rounds: int) -> argparse.ArgumentParser:
    """The options of all benchmarks of training steps."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--model", choices=MODELS, default=model, help=f"default {model}")
    add("--rounds", type=int, default=rounds, help=f"turns of each (default {rounds})")
    add("--images", type=int, default=16, help="images in a batch (default 16)")
    add("--out", type=Path, help="JSON file to put the results into")
    return parser
