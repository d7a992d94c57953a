"""Make the views of one image: random crops, augmented as in MSN (paper, A.1).

What a view looks like is decided in `msn.data.draws`; `render` makes its pixels. Images and views
are uint8 (H, W, C).

The pixel operations follow those of torchvision on PIL images, several times faster; the tests
state how close they come. Each takes and returns uint8 (H, W, C), or (H, W) for gray images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from msn.config.sections.data import Interpolation
from msn.data.draws import Box, Draw, ViewSpec, draw_view, pack
from msn.data.image import Image
from msn.runtime import keyed

# A reduced image is used where every crop shrinks by this much more: its filter hardly shows then.
REDUCING_GAP = 2
BLUR_STEPS = 512  # kernels for each pixel of radius
_NEGLIGIBLE = 2**-10  # weight in a kernel: a quarter of a gray level
MOST_CHANNELS = 128  # of one call of OpenCV


@dataclass(frozen=True)
class SampleViews:
    """The views of one image: by kind, uint8 (count, S, S, C).

    Where the device augments, also their packed draws, float32 (views, COLUMNS).
    """

    kinds: Mapping[str, np.ndarray]
    draws: np.ndarray | None = None

    def __getitem__(self, kind: str) -> np.ndarray:
        return self.kinds[kind]


def make_views(
    image: Image, spec: ViewSpec, *, seed: int, epoch: int, sample: int, out: SampleViews
) -> None:
    """Write all views of one image into `out`, which has the kinds of `spec` in its order.

    The draws of a view depend on nothing but (seed, epoch, sample, place of the view): each view
    takes as many numbers from the sample's generator as any other.

    Raises:
        BadImage: it cannot be decoded.
    """
    height, width, _ = image.shape
    generator = keyed.generator(seed, keyed.Stream.VIEW, epoch, sample)
    views = [view for kind in out.kinds.values() for view in kind]
    draws = [
        draw_view(generator, height, width, kind.scale, spec.augmentation, clamp=kind.clamp)
        for kind in spec.kinds
        for _ in range(kind.count)
    ]
    reduction = max_reduction([draw.box for draw in draws], [len(view) for view in views])
    pixels = _plane(image.pixels(reduction))
    boxes = [draw.box for draw in draws]
    if reduction > 1:
        boxes = [reduced_box(box, reduction, pixels.shape) for box in boxes]
    # All crops first: image and code stay in the processor's caches.
    crops = [
        crop(pixels, box, len(view), spec.augmentation.interpolation)
        for box, view in zip(boxes, views, strict=True)
    ]
    if out.draws is None:
        crops = [augment(made, draw) for made, draw in zip(crops, draws, strict=True)]
    else:
        out.draws[:] = [pack(draw) for draw in draws]
    for view, made in zip(views, crops, strict=True):
        view[:] = made.reshape(view.shape)


def max_reduction(boxes: list[Box], sizes: list[int]) -> int:
    """Compute how far an image may be reduced, by 1, 2, 4 or 8, for these crops and view sizes.

    Reduced boxes move by less than a pixel of the reduced image, a small part of a view's pixel.
    """
    shrink = min(min(box.height, box.width) / size for box, size in zip(boxes, sizes, strict=True))
    return max((r for r in (2, 4, 8) if shrink >= REDUCING_GAP * r), default=1)


def reduced_box(box: Box, reduction: int, shape: tuple[int, ...]) -> Box:
    """Scale a box to the image reduced to `shape`, in whole pixels."""
    height, width = round(box.height / reduction), round(box.width / reduction)
    top = min(round(box.top / reduction), shape[0] - height)
    left = min(round(box.left / reduction), shape[1] - width)
    return Box(top, left, height, width)


def eval_view(
    image: np.ndarray, size: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Make the one view for evaluation, uint8 (size, size, C).

    The short side is resized to `eval_short_side(size)` and the center is cut out.
    """
    height, width, channels = image.shape
    short = eval_short_side(size)
    tall, wide = short * height // min(height, width), short * width // min(height, width)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    view = resize(_plane(image), tall, wide, interpolation)[top : top + size, left : left + size]
    return np.ascontiguousarray(view).reshape(size, size, channels)


def whole_view(
    image: np.ndarray, size: int, multiple: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Make a view in the proportions of the image, uint8 (H, W, C).

    The short side is resized to `size`, then what exceeds multiples of a number is cut off evenly.
    """
    short = min(image.shape[:2])
    tall, wide = (round(size * side / short) for side in image.shape[:2])
    height, width = (side - side % multiple for side in (tall, wide))
    top, left = (tall - height) // 2, (wide - width) // 2
    whole = resize(_plane(image), tall, wide, interpolation)
    view = whole[top : top + height, left : left + width]
    return np.ascontiguousarray(view).reshape(height, width, image.shape[2])


def eval_short_side(size: int) -> int:
    """Compute the short side before the evaluation view is cut out: size * 256 / 224.

    That is for photographs. Digits, CIFAR and their like reach to the border: below 64 px nothing
    is cut off a square image.
    """
    return round(size * 256 / 224) if size >= 64 else size


def render(image: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """Render one view, (size, size, C) or (size, size), of an image (H, W, C) or (H, W)."""
    return augment(crop(image, draw.box, size), draw)


def augment(view: np.ndarray, draw: Draw) -> np.ndarray:
    """Apply all of a draw but its crop; may write to the view."""
    if draw.flip:
        view = _by_channels(lambda part: cv2.flip(part, 1), view)
    if draw.jitter or draw.grayscale:
        from msn.data.color import adjust  # imports numba

        view = np.ascontiguousarray(view)
        adjust(view, draw.jitter, grayscale=draw.grayscale)
    return view if draw.blur is None else gaussian_blur(view, draw.blur)


def crop(
    image: np.ndarray, box: Box, size: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Cut a rectangle out of an image, and resize it to a square."""
    top, left, height, width = box
    return resize(image[top : top + height, left : left + width], size, size, interpolation)


def resize(
    image: np.ndarray, height: int, width: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Resize with PIL's filter of that name: what shrinks is averaged over all that it covers.

    PIL's filters are the reference, as the recipes resize by torchvision on PIL images.
    """
    grows = height >= image.shape[0] and width >= image.shape[1]
    if grows and interpolation == "bilinear":  # OpenCV's bicubic has another kernel than PIL's
        return _by_channels(
            lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR_EXACT),
            image,
        )
    # OpenCV has no antialiased bilinear filter: INTER_AREA is both blurrier and slower than this.
    pixels = np.require(image, requirements=["C", "W"]).reshape(*image.shape[:2], -1)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None].permute(0, 3, 1, 2),  # strides that it sees as channels last
        size=(height, width),
        mode=interpolation,
        antialias=True,
    )
    return resized.permute(0, 2, 3, 1)[0].numpy().reshape(height, width, *image.shape[2:])


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Blur by a Gaussian of standard deviation `radius`, 0 to 2 pixels, as PIL approximates it."""
    kernel = _kernels()[round(radius * BLUR_STEPS)]
    kernel = kernel[kernel > 0]
    # Reflection comes closest to repeating the border pixel before each of the three passes.
    return _by_channels(
        lambda part: cv2.sepFilter2D(part, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT), image
    )


@lru_cache(maxsize=1)
def half_kernels() -> np.ndarray:
    """Compute one half of PIL's Gaussian kernels of radius 0 to 2, (2 * BLUR_STEPS + 1, 7).

    Each row holds the weights at distance 0 .. 6. PIL's blur is three passes of an extended box
    filter (Gwosdek et al., 2011), here composed into one. Unlike a sampled Gaussian it keeps its
    variance for radii below half a pixel.
    """
    variance = (np.arange(2 * BLUR_STEPS + 1) / BLUR_STEPS) ** 2 / 3  # of each pass
    inner = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)  # 2 * inner + 1 taps of full weight,
    edge = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)  # a fraction at either end
    edge /= 6 * (variance - (inner + 1) ** 2)
    beyond = np.abs(np.arange(-2, 3)) - inner[:, None]
    box = np.where(beyond <= 0, 1.0, np.where(beyond == 1, edge[:, None], 0.0))
    box /= box.sum(axis=1, keepdims=True)
    kernels = np.fft.irfft(np.fft.rfft(box, 16) ** 3, 16)[:, :13]  # three passes: a cube
    kernels[kernels < _NEGLIGIBLE] = 0
    halves: np.ndarray = kernels[:, 6:] / kernels.sum(axis=1, keepdims=True)
    return halves


@lru_cache(maxsize=1)
def _kernels() -> np.ndarray:
    half = half_kernels()
    return np.concatenate((half[:, :0:-1], half), axis=1)


def _plane(image: np.ndarray) -> np.ndarray:
    """Drop the channel axis of a gray image (H, W, 1); leave any other (H, W, C) as it is."""
    return image[..., 0] if image.shape[2] == 1 else image


def _by_channels(operation: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Apply an operation to all channels, to no more at a time than OpenCV takes."""
    if image.ndim == 2 or image.shape[2] <= MOST_CHANNELS:
        return operation(image)
    parts = np.array_split(image, -(-image.shape[2] // MOST_CHANNELS), axis=2)
    return np.concatenate([operation(part) for part in parts], axis=2)
