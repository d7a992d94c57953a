"""Time to fit the low-shot classifier: the torch solver against cyanure, in one run.

    python benchmarks/logistic.py

5,000 features of width 384 in 1,000 classes, as of ViT-S/16 with five labeled images per class of
ImageNet: classes are Gaussian clusters whose directions fall off in strength, as those of real
features do.
"""

import argparse
import time

import torch
from torch import Tensor
from torch.nn import functional

from msn.evaluation.logistic import accuracy, fit, prepare


def problem(samples: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (samples, width) and labels, the same number of each class."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.arange(1, width + 1) ** -0.5
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) * strength
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, width, generator=generator) * strength
    return centers[labels] + 1.8 * noise, labels


def objective(weight: Tensor, features: Tensor, labels: Tensor, lambd: float) -> float:
    scores = features.double() @ weight.double().T
    penalty = lambd / (2 * len(features)) * weight.double().square().sum()
    return float(functional.cross_entropy(scores, labels) + penalty)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--lambd", type=float, nargs="+", default=[0.0025, 0.075])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    raw, labels = problem(options.samples, options.width, options.classes, seed=1)
    raw_test, test_labels = problem(options.samples, options.width, options.classes, seed=2)
    train, test = prepare(raw), prepare(raw_test)
    print(
        f"{options.samples} x {options.width}, {options.classes} classes, {options.threads} threads"
    )
    print(f"{'lambda':>8}  {'solver':14}  {'seconds':>8}  {'objective':>12}  {'top-1 %':>8}")
    for lambd in options.lambd:
        seconds = {}
        for name, solver, dtype in (
            ("torch float64", "torch", torch.float64),
            ("torch float32", "torch", torch.float32),
            ("cyanure", "cyanure", torch.float32),
        ):
            start = time.perf_counter()
            model = fit(train.to(dtype), labels, lambd=lambd, solver=solver)
            seconds[name] = time.perf_counter() - start
            value = objective(model.weight, train, labels, lambd)
            top1 = accuracy(model, test.to(dtype), test_labels).top1
            print(
                f"{lambd:>8g}  {name:14}  {seconds[name]:>8.2f}  {value:>12.7f}  {top1:>8.2f}",
                flush=True,
            )
        ratio = seconds["cyanure"] / seconds["torch float64"]
        print(f"{lambd:>8g}  cyanure takes {ratio:.1f} times as long as torch float64", flush=True)


if __name__ == "__main__":
    main()
