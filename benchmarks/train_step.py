"""How much faster a training step is than a plain fp32 eager one (`baseline.py`).

    python benchmarks/train_step.py                 ViT-S/16, 16 images, 1 random + 10 focal views
    python benchmarks/train_step.py --require 2.0   fails below twice as fast

Both start from the same weights and the same uint8 views, and must first agree on the loss in
fp32. Then they take turns, so that whatever else the machine does falls on both.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from baseline import Baseline, Settings

from msn.build import Parts, build_parts, share_out
from msn.config import Config, load_config
from msn.data.batch import Views
from msn.pretrain import train_step

RECIPE = Path(__file__).parents[1] / "configs/pretrain/msn_vits16.yaml"
LOSS_TOLERANCE = 1e-4


def recipe(images: int) -> Config:
    """The published recipe; random pixels stand for its images, so the data set is any."""
    return load_config(
        RECIPE, [f"criterion.batch_size={images}", "data.source=digits", "data.channels=3"]
    )


def random_views(config: Config) -> Views:
    """One batch of uint8 noise, of the sizes and numbers of the config."""
    data, images = config.data, share_out(config, 1).own
    generator = torch.Generator().manual_seed(0)

    def pixels(*views: int, size: int) -> torch.Tensor:
        shape = (*views, images, size, size, 3)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    return Views(
        pixels(size=data.rand_size),
        pixels(data.rand_views, size=data.rand_size),
        pixels(data.focal_views, size=data.focal_size),
    )


def same_start(parts: Parts) -> Baseline:
    """A baseline with the weights of `parts`."""
    settings = Settings(mean=tuple(parts.mean.tolist()), std=tuple(parts.std.tolist()))
    schedules = parts.schedules
    baseline = Baseline(
        settings, lr=schedules.learning_rate(1), weight_decay=schedules.weight_decay(1)
    )
    baseline.anchor.load_state_dict(parts.model.anchor.state_dict())
    baseline.target.load_state_dict(parts.model.target.state_dict())
    with torch.no_grad():
        baseline.prototypes.copy_(parts.model.prototypes)
    return baseline


def kept_patches(parts: Parts, views: Views, step: int) -> torch.Tensor:
    """The patches that our model keeps at a step, for the baseline to keep the same."""
    channels_first = Views(*(kind.movedim(-1, -3) for kind in views[:3]))
    (keep,) = parts.model.draw_keep(channels_first, step)
    assert keep is not None
    return keep


@torch.no_grad()
def fp32_losses(parts: Parts, baseline: Baseline, views: Views) -> tuple[float, float]:
    """The loss of the baseline and ours, on the same weights, views and patches."""
    ours = parts.model(views.normalised(parts.mean, parts.std), step=0).total
    return baseline.loss(*views[:3], kept_patches(parts, views, 0)).item(), ours.item()


def take_turns(steps: Sequence[Callable[[int], object]], rounds: int) -> list[list[float]]:
    """Seconds that each of `steps` takes, for every round but the first, which is a warm-up."""
    times = []
    for number in range(rounds + 1):
        row = []
        for step in steps:
            start = time.perf_counter()
            step(number)
            row.append(time.perf_counter() - start)
        name = f"round {number}" if number else "warm-up"
        print(f"{name}: {row[0]:.2f} s, {row[1]:.2f} s", flush=True)
        times.append(row)
    return times[1:]


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description="A training step against a plain fp32 eager one.")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each (default 5)")
    parser.add_argument("--images", type=int, default=16, help="images in a batch (default 16)")
    parser.add_argument("--require", type=float, help="fail when the ratio is below this")
    options = parser.parse_args()

    config = recipe(options.images)
    parts = build_parts(config, torch.device("cpu"))
    baseline, views = same_start(parts), random_views(config)

    losses = fp32_losses(parts, baseline, views)
    print(f"loss in fp32: {losses[0]:.6f} baseline, {losses[1]:.6f} ours")
    if not abs(losses[0] - losses[1]) <= LOSS_TOLERANCE:
        print(f"error: the two do not compute the same (tolerance {LOSS_TOLERANCE:g})")
        return 1

    def baseline_step(step: int) -> None:
        keep = kept_patches(parts, views, step)
        baseline.step(*views[:3], keep, parts.schedules.momentum(step))

    def our_step(step: int) -> None:
        train_step(parts, views.normalised(parts.mean, parts.std), step)

    times = take_turns([baseline_step, our_step], options.rounds)
    ratio = statistics.median(theirs / ours for theirs, ours in times)
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    data, precision = config.data, "bf16" if parts.bf16 else "fp32"
    print(
        f"\n{config.meta.model_name}, {options.images} images, {data.rand_views} random +"
        f" {data.focal_views} focal views; median of {options.rounds} rounds"
        f"\n{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"\n{'':24}s / step"
        f"\n{'baseline (fp32, plain)':24}{theirs:8.2f}"
        f"\n{f'ours ({precision})':24}{ours:8.2f}"
        f"\n{'ratio':24}{ratio:8.2f}"
    )
    if options.require and ratio < options.require:
        print(f"error: the ratio {ratio:.2f} is below {options.require:g}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
