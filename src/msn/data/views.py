"""One image to its views: a target, random and focal crops, augmented as in MSN (paper, A.1).

What a view looks like is decided in `msn.data.draws`; `render` makes its pixels. Images and views
are uint8 (H, W, C).

The pixel operations follow those of torchvision on PIL images, several times faster; the tests
state how close they come. Each takes and returns uint8 (H, W, C), or (H, W) for grey images. Only
three channels are colours: of others `contrast` takes the mean of all for their grey, `saturation`,
`hue` and `grayscale` change nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch

from msn import keyed
from msn.data.draws import Box, Draw, Operation, ViewSpec, draw_view, pack
from msn.data.image import Image

# A reduced image is used where every crop shrinks by this much more: its filter hardly shows then.
REDUCING_GAP = 2
BLUR_STEPS = 512  # kernels for each pixel of radius
MOST_CHANNELS = 128  # of one call of OpenCV
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, of red, green and blue
# PIL cuts off the fraction where OpenCV rounds. Short of a half, so that whole numbers stay.
_CUT_OFF = -0.499


class SampleViews(NamedTuple):
    """The views of one image, uint8: target (H, W, C), random (R, H, W, C), focal (F, h, w, C).

    With `ViewSpec.augment_on` "device" also their packed draws, float32 (1 + R + F, COLUMNS).
    """

    target: np.ndarray
    random: np.ndarray
    focal: np.ndarray
    draws: np.ndarray | None = None


def make_views(
    image: Image, spec: ViewSpec, *, seed: int, epoch: int, sample: int, out: SampleViews
) -> None:
    """Write all views of one image into `out`.

    View 0 is the target, 1..R are the random and R+1..R+F the focal ones; the draws of a view
    depend on nothing but (seed, epoch, sample, view): each view takes as many numbers from the
    sample's generator as any other.

    Raises:
        BadImage: it cannot be decoded.
    """
    height, width, _ = image.shape
    generator = keyed.generator(seed, keyed.Stream.VIEW, epoch, sample)
    views = [out.target, *out.random, *out.focal]
    scales = [spec.rand_crop_scale] * (1 + len(out.random))
    scales += [spec.focal_crop_scale] * len(out.focal)
    draws = [draw_view(generator, height, width, scale, spec) for scale in scales]
    reduction = max_reduction([draw.box for draw in draws], [len(view) for view in views])
    pixels = _plane(image.pixels(reduction))
    for draw, view in zip(draws, views, strict=True):
        if reduction > 1:
            draw = draw._replace(box=reduced_box(draw.box, reduction, pixels.shape))
        if out.draws is None:
            made = render(pixels, draw, len(view))
        else:
            made = crop(pixels, draw.box, len(view))
        view[:] = made.reshape(view.shape)
    if out.draws is not None:
        out.draws[:] = [pack(draw) for draw in draws]


def max_reduction(boxes: list[Box], sizes: list[int]) -> int:
    """How far an image may be reduced, by 1, 2, 4 or 8, for these crops to views of these sizes.

    Reduced boxes move by less than a pixel of the reduced image, a small part of a view's pixel.
    """
    shrink = min(min(box.height, box.width) / size for box, size in zip(boxes, sizes, strict=True))
    return max((r for r in (2, 4, 8) if shrink >= REDUCING_GAP * r), default=1)


def reduced_box(box: Box, reduction: int, shape: tuple[int, ...]) -> Box:
    """The box in an image reduced to `shape`, in whole pixels."""
    height, width = round(box.height / reduction), round(box.width / reduction)
    top = min(round(box.top / reduction), shape[0] - height)
    left = min(round(box.left / reduction), shape[1] - width)
    return Box(top, left, height, width)


def eval_view(image: np.ndarray, size: int) -> np.ndarray:
    """The one view for evaluation, uint8 (size, size, C).

    The short side is resized to size * 256 / 224 and the centre is cut out, as for ImageNet. An
    image no larger than `size` on either side is resized to the square as it is, since its borders
    may not be spared.
    """
    height, width, channels = image.shape
    source = _plane(image)
    if max(height, width) <= size:
        return resize(source, size, size).reshape(size, size, channels)
    short = round(size * 256 / 224)
    tall, wide = short * height // min(height, width), short * width // min(height, width)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    view = resize(source, tall, wide)[top : top + size, left : left + size]
    return np.ascontiguousarray(view).reshape(size, size, channels)


def render(image: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The pixels of one view, (size, size, C) or (size, size), of an image (H, W, C) or (H, W)."""
    view = crop(image, draw.box, size)
    if draw.flip:
        view = _by_channels(lambda part: cv2.flip(part, 1), view)
    for operation, factor in draw.jitter:
        view = _JITTER[operation](view, factor)
    if draw.grayscale:
        view = grayscale(view)
    return view if draw.blur is None else gaussian_blur(view, draw.blur)


def crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """A rectangle of an image, resized to a square."""
    top, left, height, width = box
    return resize(image[top : top + height, left : left + width], size, size)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, each output pixel averaging over all that it covers (PIL's `BILINEAR`)."""
    if height >= image.shape[0] and width >= image.shape[1]:
        return _by_channels(
            lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR_EXACT),
            image,
        )
    # OpenCV has no antialiased bilinear filter: INTER_AREA is both blurrier and slower than this.
    pixels = np.require(image, requirements=["C", "W"]).reshape(*image.shape[:2], -1)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None].permute(0, 3, 1, 2),  # strides that it sees as channels last
        size=(height, width),
        mode="bilinear",
        antialias=True,
    )
    return resized.permute(0, 2, 3, 1)[0].numpy().reshape(height, width, *image.shape[2:])


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 the image."""
    return cv2.convertScaleAbs(image, alpha=factor, beta=_CUT_OFF)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey of the image: 0 is that grey, 1 the image."""
    if _is_rgb(image):
        grey = sum(w * m for w, m in zip(LUMA, cv2.mean(image), strict=False))
    else:
        grey = cv2.mean(image.reshape(len(image), -1))[0]
    offset = (1 - factor) * int(grey + 0.5) + _CUT_OFF
    if factor <= 1:  # nothing falls below zero, of which this would take the absolute value
        return cv2.convertScaleAbs(image, alpha=factor, beta=offset)
    return cv2.addWeighted(image, factor, image, 0, offset)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey version of the image: 0 is grey, 1 the image."""
    if not _is_rgb(image):
        return image
    return cv2.transform(image, _GREY + factor * _COLOUR)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the colour circle by `factor` of a full turn."""
    shift = int(factor * 255)  # so in torchvision, though a full turn is 256 steps
    if shift == 0 or not _is_rgb(image):
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += _hue_row(shift % 256, len(hsv[0]))  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma in every channel."""
    if not _is_rgb(image):
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur with standard deviation `radius`, 0 to 2 pixels, as PIL approximates it."""
    kernel = _kernels()[round(radius * BLUR_STEPS)]
    kernel = kernel if kernel[0] > 0 else kernel[3:-3]
    # Reflection comes closest to repeating the border pixel before each of the three passes.
    return _by_channels(
        lambda part: cv2.sepFilter2D(part, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT), image
    )


@lru_cache(maxsize=1)
def half_kernels() -> np.ndarray:
    """Weights at distance 0 .. 6 of PIL's Gaussian blur of radius 0 to 2: (2 * BLUR_STEPS + 1, 7).

    That is three passes of an extended box filter (Gwosdek et al., 2011), here composed into one.
    Unlike a sampled Gaussian it keeps its variance for radii below half a pixel.
    """
    variance = (np.arange(2 * BLUR_STEPS + 1) / BLUR_STEPS) ** 2 / 3  # of each pass
    inner = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)  # 2 * inner + 1 taps of full weight,
    edge = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)  # a fraction at either end
    edge /= 6 * (variance - (inner + 1) ** 2)
    beyond = np.abs(np.arange(-2, 3)) - inner[:, None]
    box = np.where(beyond <= 0, 1.0, np.where(beyond == 1, edge[:, None], 0.0))
    box /= box.sum(axis=1, keepdims=True)
    kernels = np.fft.irfft(np.fft.rfft(box, 16) ** 3, 16)  # three passes: a cube
    return np.where(kernels[:, 6:13] < 1e-12, 0, kernels[:, 6:13])


@lru_cache(maxsize=1)
def _kernels() -> np.ndarray:
    half = half_kernels()
    return np.concatenate((half[:, :0:-1], half), axis=1)


_JITTER = {
    Operation.BRIGHTNESS: brightness,
    Operation.CONTRAST: contrast,
    Operation.SATURATION: saturation,
    Operation.HUE: hue,
}
# What makes a pixel (r, g, b, 1) grey, and what it lacks then.
_GREY = np.array([[*LUMA, _CUT_OFF]] * 3)
_COLOUR = np.eye(3, 4) - np.array([[*LUMA, 0]] * 3)


@lru_cache(maxsize=1024)
def _hue_row(shift: int, width: int) -> np.ndarray:
    """What is added to a row of HSV pixels, flat."""
    row = np.zeros((width, 3), np.uint8)
    row[:, 0] = shift
    return row.ravel()


def _plane(image: np.ndarray) -> np.ndarray:
    """(H, W, C), or (H, W) of a grey image (H, W, 1)."""
    return image[..., 0] if image.shape[2] == 1 else image


def _is_rgb(image: np.ndarray) -> bool:
    return image.ndim == 3 and image.shape[2] == 3


def _by_channels(operation: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """The same done with every channel, with no more at a time than OpenCV takes."""
    if image.ndim == 2 or image.shape[2] <= MOST_CHANNELS:
        return operation(image)
    parts = np.array_split(image, -(-image.shape[2] // MOST_CHANNELS), axis=2)
    return np.concatenate([operation(part) for part in parts], axis=2)
