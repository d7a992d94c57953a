"""A batch of views as a named structure, and its way from bytes to normalised floats."""

from typing import NamedTuple

import torch
from torch import Tensor


class Views(NamedTuple):
    """The views of B images, by kind.

    As uint8 on their way through the loader the axes end in (H, W, C); normalised on the device
    they end in (C, H, W).

    Attributes:
        target: (B, ...), the view that the target encoder sees, whole.
        random: (R, B, ...), anchor views that lose patches.
        focal: (F, B, ...), small anchor views, whole.
    """

    target: Tensor
    random: Tensor
    focal: Tensor

    def micro_batches(self, count: int) -> list["Views"]:
        """Split the images into `count` equal parts, without copying.

        Raises:
            ValueError: `count` does not divide the number of images.
        """
        images = len(self.target)
        if images % count:
            raise ValueError(f"{images} images do not split into {count} equal micro-batches")
        parts = zip(
            self.target.chunk(count),
            self.random.chunk(count, dim=1),
            self.focal.chunk(count, dim=1),
            strict=True,
        )
        return [Views(*part) for part in parts]

    def normalised(self, mean: Tensor, std: Tensor) -> "Views":
        """uint8 views on the host to normalised float views on the device of mean and std."""
        return Views(*(normalise(kind, mean, std) for kind in self))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (..., H, W, C) to float (..., C, H, W): `(x / 255 - mean) / std` by channel.

    Args:
        images: pixels, on any device.
        mean: (C,) on the device that the result shall be on.
        std: (C,), likewise.
    """
    floats = images.to(mean.device, non_blocking=True).to(mean.dtype)
    return torch.addcmul(-mean / std, floats, 1 / (255 * std)).movedim(-1, -3)
