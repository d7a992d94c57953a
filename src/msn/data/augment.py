"""The augmentation of fine-tuning: timm's, with keyed random draws.

timm draws from the global generators of Python, NumPy and PyTorch; here they are seeded for each
image, and afterwards left as they were.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from msn.data.image import Image
from msn.runtime.keyed import Stream, seed64

Compose = Callable[[PIL.Image.Image], torch.Tensor]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch inside the `with` block.

    They are as before afterwards, but for those of GPUs, which nothing else draws from unseeded.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass(frozen=True)
class Augment:
    """Random crop and flip, then RandAugment; keyed by (seed, epoch, index).

    Attributes:
        size: side of the result, px.
        scale: smallest and largest area of the crop, as fractions of the image.
        flip: probability of a horizontal flip.
        auto_augment: in timm's notation, such as rand-m9-mstd0.5-inc1; empty for none.
        interpolation: "bilinear" or "bicubic".
        seed: of the run.
    """

    size: int
    scale: tuple[float, float]
    flip: float
    auto_augment: str
    interpolation: str
    seed: int

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        with seeded(seed64(self.seed, Stream.VIEW, epoch, index)):
            return through_pil(self._transform, image.pixels())

    @cached_property
    def _transform(self) -> Compose:
        from timm.data import create_transform

        steps = create_transform(
            self.size,
            is_training=True,
            use_prefetcher=True,  # that is: the result is uint8
            scale=self.scale,
            hflip=self.flip,
            color_jitter=None,
            auto_augment=self.auto_augment or None,
            interpolation=self.interpolation,
        )
        for step in steps.transforms:
            for operation in getattr(step, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
        transform: Compose = steps
        return transform


@dataclass(frozen=True)
class Center:
    """Resize the short side to size / crop_pct, then cut out the center."""

    size: int
    crop_pct: float
    interpolation: str

    def __call__(self, image: Image, epoch: int, index: int) -> np.ndarray:
        return through_pil(self._transform, image.pixels())

    @cached_property
    def _transform(self) -> Compose:
        from timm.data import create_transform

        transform: Compose = create_transform(
            self.size,
            use_prefetcher=True,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
        )
        return transform


def through_pil(transform: Compose, pixels: np.ndarray) -> np.ndarray:
    """Apply a transform of RGB images to uint8 (H, W, C); a gray image comes out gray."""
    gray = pixels.shape[2] == 1
    image = PIL.Image.fromarray(np.repeat(pixels, 3, axis=2) if gray else pixels)
    view = np.ascontiguousarray(transform(image).permute(1, 2, 0).numpy())
    return cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None] if gray else view


def _posterize(image: PIL.Image.Image, bits: int, **unused: object) -> PIL.Image.Image:
    """Posterize as timm does, but keep at least 1 bit: Pillow 13 refuses timm's strongest, 0."""
    return PIL.ImageOps.posterize(image, max(bits, 1)) if bits < 8 else image
