"""What images are normalised with."""

from typing import NamedTuple

# Per-channel statistics of the ImageNet training images, as every ImageNet recipe uses them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalisation(NamedTuple):
    """Mean and standard deviation of the images, a number per channel, in the scale 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def imagenet_normalisation(channels: int) -> Normalisation:
    """ImageNet's numbers; for another number of channels than three, their mean for each."""
    if channels == len(IMAGENET_MEAN):
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    return Normalisation((mean,) * channels, (std,) * channels)
