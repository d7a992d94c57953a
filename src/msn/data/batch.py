"""The views of a batch by kind: buffers, and the way to normalized floats on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from msn.data.device_views import augment
from msn.data.draws import COLUMNS, ViewSpec
from msn.data.views import SampleViews


@dataclass(frozen=True)
class Views:
    """The views of B images, by kind.

    As uint8 on their way through the loader the axes end in (S, S, C); normalized on the device
    they end in (C, S, S).

    Attributes:
        kinds: name of a kind -> (count, B, ...), in the order of the views' draws.
        draws: float32 (views, B, COLUMNS), what is left to do with views that were cropped only;
            None for finished views. Stays on the host, where it is read.
    """

    kinds: Mapping[str, Tensor]
    draws: Tensor | None = None

    def __getitem__(self, kind: str) -> Tensor:
        return self.kinds[kind]

    @property
    def images(self) -> int:
        """The number of images, B."""
        return next(iter(self.kinds.values())).shape[1]

    def micro_batches(self, count: int) -> list["Views"]:
        """Split the images of finished views into `count` equal parts, without copying.

        Raises:
            ValueError: `count` does not divide the number of images.
        """
        assert self.draws is None
        if self.images % count:
            raise ValueError(f"{self.images} images do not split into {count} equal micro-batches")
        chunks = [views.chunk(count, dim=1) for views in self.kinds.values()]
        return [
            Views(dict(zip(self.kinds, part, strict=True))) for part in zip(*chunks, strict=True)
        ]

    def each(self, function: Callable[[Tensor], Tensor]) -> "Views":
        """Apply a function to every tensor."""
        kinds = {name: function(views) for name, views in self.kinds.items()}
        return Views(kinds, None if self.draws is None else function(self.draws))

    def tensors(self) -> list[Tensor]:
        """List the tensors of all kinds, and the draws if there are any."""
        return [*self.kinds.values(), *([] if self.draws is None else [self.draws])]

    def samples(self) -> list[SampleViews]:
        """Give the views of each image as arrays that share memory with this batch on the host."""
        kinds = {name: views.numpy() for name, views in self.kinds.items()}
        draws = None if self.draws is None else self.draws.numpy()
        return [
            SampleViews(
                {name: views[:, i] for name, views in kinds.items()},
                None if draws is None else draws[:, i],
            )
            for i in range(self.images)
        ]

    def normalized(self, mean: Tensor, std: Tensor) -> "Views":
        """Turn uint8 views into normalized floats, finished on the device of `mean` and `std`."""
        if self.draws is None:
            return self.each(lambda views: normalize(views, mean, std))
        kinds: dict[str, Tensor] = {}
        start = 0
        # Neighbors of one size are augmented together: fewer kernels to launch.
        for _, group in groupby(self.kinds.items(), lambda kind: kind[1].shape[-2]):
            names, views = zip(*group, strict=True)
            counts = [len(each) for each in views]
            large = torch.cat([each.to(mean.device, non_blocking=True) for each in views])
            draws = self.draws[start : start + len(large)]
            kinds.update(zip(names, _augmented(large, draws, mean, std).split(counts), strict=True))
            start += len(large)
        return Views(kinds)


def allocate(spec: ViewSpec, batch_size: int, channels: int, *lead: int) -> Views:
    """Allocate empty buffers for the views of `batch_size` images, behind any leading axes."""
    kinds = {
        kind.name: torch.empty(
            *lead, kind.count, batch_size, kind.size, kind.size, channels, dtype=torch.uint8
        )
        for kind in spec.kinds
    }
    draws = torch.empty(*lead, spec.count, batch_size, COLUMNS) if spec.on_device else None
    return Views(kinds, draws)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 (..., H, W, C) into float (..., C, H, W), `(x / 255 - mean) / std` by channel.

    Args:
        images: pixels, on any device.
        mean: (C,) on the device that the result shall be on.
        std: (C,), likewise.
    """
    floats = images.to(mean.device, non_blocking=True).to(mean.dtype)
    return _standardized(floats, mean, std).movedim(-1, -3)


def _augmented(images: Tensor, draws: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Augment uint8 (V, B, H, W, C) by their draws, and normalize to (V, B, C, H, W)."""
    if not images.numel():
        return images.movedim(-1, -3).to(mean.dtype)
    floats = augment(images.flatten(0, 1), draws.flatten(0, 1).numpy(), mean.dtype)
    floats = _standardized(floats, mean[:, None, None], std[:, None, None])
    views: Tensor = floats.unflatten(0, images.shape[:2])
    return views


def _standardized(floats: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.addcmul(-mean / std, floats, 1 / (255 * std))
