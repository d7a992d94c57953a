"""What twelve linear classifiers cost over one: ViT-S/16, 224 px, 1,000 classes, side by side.

python benchmarks/linear.py [--rounds 5] [--batch-size 64] [--device cuda]
"""

import argparse
import statistics
import time
from itertools import product

import torch

from msn.config.sizes import ENCODERS
from msn.evaluation.linear import LinearLearner, Training
from msn.models.linear import HeadSettings
from msn.models.vit import build_encoder
from msn.runtime.devices import use_bf16

ONE = [HeadSettings(6.4, 1)]
TWELVE = [HeadSettings(*pair) for pair in product((0.1, 0.4, 0.8, 1.6, 3.2, 6.4), (1, 4))]


def build(settings: list[HeadSettings], device: torch.device) -> LinearLearner:
    """The classifiers on an untrained encoder, which takes as long as a trained one."""
    return LinearLearner(
        build_encoder(ENCODERS["deit_small"]).to(device),
        settings,
        Training(total_steps=1000),
        classes=1000,
        bf16=use_bf16("auto", device),
    )


def seconds(learner: LinearLearner, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Time of one training step."""
    start = time.perf_counter()
    learner.train_step(images, labels, 0).sum().item()  # waits for the device
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    images = torch.randn(options.batch_size, 3, 224, 224, device=device)
    labels = torch.randint(1000, (options.batch_size,), device=device)
    learners = {len(settings): build(settings, device) for settings in (ONE, TWELVE)}
    for learner in learners.values():
        seconds(learner, images, labels)
    times: dict[int, list[float]] = {heads: [] for heads in learners}
    for _ in range(options.rounds):  # in turns: what slows the machine slows both
        for heads, learner in learners.items():
            times[heads].append(seconds(learner, images, labels))
    medians = {heads: statistics.median(measured) for heads, measured in times.items()}
    for heads, median in medians.items():
        print(f"{heads:2} classifiers  {median:.3f} s per step of {options.batch_size} images")
    print(f"ratio           {medians[12] / medians[1]:.3f}")


if __name__ == "__main__":
    main()
