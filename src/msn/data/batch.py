"""A batch of views as a named structure, its buffers, and its way to normalised floats."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from msn.data.device_views import augment
from msn.data.draws import COLUMNS, ViewSpec
from msn.data.views import SampleViews


class Views(NamedTuple):
    """The views of B images, by kind.

    As uint8 on their way through the loader the axes end in (H, W, C); normalised on the device
    they end in (C, H, W).

    Attributes:
        target: (B, ...), the view that the target encoder sees, whole.
        random: (R, B, ...), anchor views that lose patches.
        focal: (F, B, ...), small anchor views, whole.
        draws: float32 (1 + R + F, B, COLUMNS), what is left to do with views that were cropped
            only; None for finished views. Stays on the host, where it is read.
    """

    target: Tensor
    random: Tensor
    focal: Tensor
    draws: Tensor | None = None

    def micro_batches(self, count: int) -> list["Views"]:
        """Split the images of finished views into `count` equal parts, without copying.

        Raises:
            ValueError: `count` does not divide the number of images.
        """
        assert self.draws is None
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

    def each(self, function: Callable[[Tensor], Tensor]) -> "Views":
        """The same done with every tensor."""
        return Views(*(function(kind) for kind in self if kind is not None))

    def samples(self) -> list[SampleViews]:
        """The views of each image as arrays that share memory with this batch on the host."""
        target, random, focal = (kind.numpy() for kind in (self.target, self.random, self.focal))
        draws = None if self.draws is None else self.draws.numpy()
        return [
            SampleViews(
                target[i], random[:, i], focal[:, i], None if draws is None else draws[:, i]
            )
            for i in range(len(target))
        ]

    def normalised(self, mean: Tensor, std: Tensor) -> "Views":
        """uint8 views to normalised float views, finished on the device of `mean` and `std`."""
        if self.draws is None:
            kinds = (self.target, self.random, self.focal)
            return Views(*(normalise(kind, mean, std) for kind in kinds))
        device, random = mean.device, 1 + len(self.random)
        large = torch.cat(
            (self.target.to(device, non_blocking=True)[None],
             self.random.to(device, non_blocking=True))
        )  # fmt: skip
        large = _augmented(large, self.draws[:random], mean, std)
        focal = self.focal.to(device, non_blocking=True)
        return Views(large[0], large[1:], _augmented(focal, self.draws[random:], mean, std))


def allocate(spec: ViewSpec, batch_size: int, channels: int, *lead: int) -> Views:
    """Empty uint8 buffers for the views of so many images, behind any leading axes."""

    def pixels(views: tuple[int, ...], size: int) -> Tensor:
        return torch.empty(*lead, *views, batch_size, size, size, channels, dtype=torch.uint8)

    views = 1 + spec.rand_views + spec.focal_views
    return Views(
        pixels((), spec.rand_size),
        pixels((spec.rand_views,), spec.rand_size),
        pixels((spec.focal_views,), spec.focal_size),
        torch.empty(*lead, views, batch_size, COLUMNS) if spec.augment_on == "device" else None,
    )


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (..., H, W, C) to float (..., C, H, W): `(x / 255 - mean) / std` by channel.

    Args:
        images: pixels, on any device.
        mean: (C,) on the device that the result shall be on.
        std: (C,), likewise.
    """
    floats = images.to(mean.device, non_blocking=True).to(mean.dtype)
    return _standardised(floats, mean, std).movedim(-1, -3)


def _augmented(images: Tensor, draws: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (V, B, H, W, C) and (V, B, COLUMNS) to normalised (V, B, C, H, W)."""
    if not images.numel():
        return images.movedim(-1, -3).to(mean.dtype)
    floats = augment(images.flatten(0, 1), draws.flatten(0, 1).numpy(), mean.dtype)
    floats = _standardised(floats, mean[:, None, None], std[:, None, None])
    return floats.unflatten(0, images.shape[:2])


def _standardised(floats: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.addcmul(-mean / std, floats, 1 / (255 * std))
