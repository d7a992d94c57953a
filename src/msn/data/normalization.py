"""Mean and standard deviation that images are normalized with."""

from typing import NamedTuple

import numpy as np

# Per-channel statistics of the ImageNet training images, as every ImageNet recipe uses them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization(NamedTuple):
    """Mean and standard deviation of the images, a number per channel, in the scale 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def measured_normalization(counts: np.ndarray) -> Normalization:
    """Compute mean and standard deviation from `counts`, (C, 256), of pixels by channel and value.

    Deviations are of one step between values at least: channels that are constant become zero.
    """
    share, levels = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, levels[1] ** 2))
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def imagenet_normalization(channels: int) -> Normalization:
    """Give ImageNet's mean and deviation, averaged over channels unless there are three."""
    if channels == len(IMAGENET_MEAN):
        return Normalization(IMAGENET_MEAN, IMAGENET_STD)
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    return Normalization((mean,) * channels, (std,) * channels)
