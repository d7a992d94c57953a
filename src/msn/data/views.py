"""One image to its views: a target, random and focal crops, augmented as in MSN (paper, A.1).

What a view looks like is decided first, by `draw_view`, as a function of keyed uniform numbers;
`render` then makes its pixels. Images and views are uint8 (H, W, C) with C = 1 or 3.

The pixel operations follow those of torchvision on PIL images, several times faster; the tests
state how close they come. Each takes and returns uint8 (H, W, 3), or (H, W) for grey images, on
which `saturation`, `hue` and `grayscale` change nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from msn import keyed

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop
CROP_TRIES = 10
BLUR_RADIUS = (0.1, 2.0)  # pixels of the view
# PIL cuts off the fraction where OpenCV rounds. Short of a half, so that whole numbers stay.
_CUT_OFF = -0.499

Operation = Callable[[np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class ViewSpec:
    """Which views an image gives. Sizes in pixels, crop scales as shares of the image's area.

    `flip`, `color_jitter`, `grayscale` and `blur` are probabilities: 0 switches one off.
    """

    rand_size: int = 224
    focal_size: int = 96
    rand_views: int = 1
    focal_views: int = 10
    rand_crop_scale: tuple[float, float] = (0.3, 1.0)
    focal_crop_scale: tuple[float, float] = (0.05, 0.3)
    flip: float = 0.5
    color_jitter: float = 0.8
    color_jitter_strength: float = 0.5
    grayscale: float = 0.2
    blur: float = 0.5


class SampleViews(NamedTuple):
    """The views of one image, uint8: target (H, W, C), random (R, H, W, C), focal (F, h, w, C)."""

    target: np.ndarray
    random: np.ndarray
    focal: np.ndarray


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Draw(NamedTuple):
    """What one view looks like: a pure description, without pixels."""

    box: Box
    flip: bool
    jitter: tuple[tuple[Operation, float], ...]
    grayscale: bool
    blur: float | None  # radius in pixels


def make_views(
    image: np.ndarray, spec: ViewSpec, *, seed: int, epoch: int, sample: int
) -> SampleViews:
    """All views of one image.

    View 0 is the target, 1..R are the random and R+1..R+F the focal ones; the draws of a view
    depend on nothing but (seed, epoch, sample, view): each view takes as many numbers from the
    sample's generator as any other.
    """
    height, width, channels = image.shape
    source = image[..., 0] if channels == 1 else image
    generator = keyed.generator(seed, keyed.Stream.VIEW, epoch, sample)

    def views(count: int, size: int, scale: tuple[float, float]) -> np.ndarray:
        out = np.empty((count, size, size, channels), dtype=np.uint8)
        for view in out:
            draw = draw_view(generator, height, width, scale, spec)
            view[:] = render(source, draw, size).reshape(view.shape)
        return out

    large = views(1 + spec.rand_views, spec.rand_size, spec.rand_crop_scale)
    focal = views(spec.focal_views, spec.focal_size, spec.focal_crop_scale)
    return SampleViews(large[0], large[1:], focal)


def eval_view(image: np.ndarray, size: int) -> np.ndarray:
    """The one view for evaluation, uint8 (size, size, C).

    The short side is resized to size * 256 / 224 and the centre is cut out, as for ImageNet. An
    image no larger than `size` on either side is resized to the square as it is, since its borders
    may not be spared.
    """
    height, width, channels = image.shape
    source = image[..., 0] if channels == 1 else image
    if max(height, width) <= size:
        return resize(source, size, size).reshape(size, size, channels)
    short = round(size * 256 / 224)
    tall, wide = short * height // min(height, width), short * width // min(height, width)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    view = resize(source, tall, wide)[top : top + size, left : left + size]
    return np.ascontiguousarray(view).reshape(size, size, channels)


def draw_view(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    spec: ViewSpec,
) -> Draw:
    """Decide one view of an image of (height, width) pixels; always takes the same many numbers."""
    # Each decision has its own place among the numbers: one switched off moves no other.
    u = generator.random(2 * CROP_TRIES + 15).tolist()
    flip, jitter, gray, blur, radius, top, left = u[:7]
    factors, order, tries = u[7:11], u[11:15], u[15:]
    return Draw(
        box=crop_box(height, width, scale, tries, top, left),
        flip=flip < spec.flip,
        jitter=(
            _draw_jitter(spec.color_jitter_strength, factors, order)
            if jitter < spec.color_jitter
            else ()
        ),
        grayscale=gray < spec.grayscale,
        blur=_between(BLUR_RADIUS, radius) if blur < spec.blur else None,
    )


def crop_box(
    height: int, width: int, scale: tuple[float, float], tries: list[float], top: float, left: float
) -> Box:
    """A random rectangle of the area and aspect asked for, as torchvision's RandomResizedCrop.

    Args:
        height, width: of the image, in pixels.
        scale: smallest and largest share of the image's area.
        tries: uniform numbers, a pair (area, aspect) for each attempt at a rectangle that fits.
        top, left: uniform numbers that place it.
    """
    log_aspect = (math.log(ASPECT[0]), math.log(ASPECT[1]))
    for u_area, u_aspect in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * _between(scale, u_area)
        aspect = math.exp(_between(log_aspect, u_aspect))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
    # None fits, e.g. in a very long image: the largest centred rectangle of an allowed aspect.
    h = min(height, round(width / ASPECT[0]))
    w = min(width, round(height * ASPECT[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def render(image: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The pixels of one view, (size, size, 3) or (size, size), of an image (H, W, 3) or (H, W)."""
    top, left, height, width = draw.box
    view = resize(image[top : top + height, left : left + width], size, size)
    if draw.flip:
        view = cv2.flip(view, 1)
    for operation, factor in draw.jitter:
        view = operation(view, factor)
    if draw.grayscale:
        view = grayscale(view)
    return view if draw.blur is None else gaussian_blur(view, draw.blur)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, each output pixel averaging over all that it covers (PIL's `BILINEAR`)."""
    if height >= image.shape[0] and width >= image.shape[1]:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    # OpenCV has no antialiased bilinear filter: INTER_AREA is both blurrier and slower than this.
    pixels = np.require(image, requirements=["C", "W"]).reshape(*image.shape[:2], -1)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=(height, width),
        mode="bilinear",
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).numpy().reshape(height, width, *image.shape[2:])


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 the image."""
    return cv2.addWeighted(image, factor, image, 0, _CUT_OFF)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey of the image: 0 is that grey, 1 the image."""
    mean = int(cv2.mean(_luma(image))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean + _CUT_OFF)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey version of the image: 0 is grey, 1 the image."""
    if image.ndim == 2:
        return image
    return cv2.addWeighted(image, factor, grayscale(image), 1 - factor, _CUT_OFF)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the colour circle by `factor` of a full turn."""
    shift = int(factor * 255)  # so in torchvision, though a full turn is 256 steps
    if image.ndim == 2 or shift == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(shift % 256)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma in every channel."""
    return image if image.ndim == 2 else cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur with standard deviation `radius`, in pixels, as PIL approximates it.

    That is three passes of an extended box filter (Gwosdek et al., 2011), here composed into one.
    Unlike a sampled Gaussian it keeps its variance for radii below half a pixel.
    """
    variance = radius**2 / 3  # of each pass
    inner = int((math.sqrt(12 * variance + 1) - 1) / 2)  # the box is 2 * inner + 1 full weights
    edge = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)  # and a fraction at either end
    edge /= 6 * (variance - (inner + 1) ** 2)
    box = np.array([edge, *[1.0] * (2 * inner + 1), edge]) / (2 * inner + 1 + 2 * edge)
    kernel = np.convolve(np.convolve(box, box), box)
    # Reflection comes closest to repeating the border pixel before each of the three passes.
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)


def _draw_jitter(
    strength: float, factors: list[float], order: list[float]
) -> tuple[tuple[Operation, float], ...]:
    """Brightness, contrast, saturation and hue with their factors, in random order."""
    reach = 0.8 * strength
    around_one = (max(0.0, 1 - reach), 1 + reach)
    around_zero = (-0.2 * strength, 0.2 * strength)
    steps = (
        (brightness, _between(around_one, factors[0])),
        (contrast, _between(around_one, factors[1])),
        (saturation, _between(around_one, factors[2])),
        (hue, _between(around_zero, factors[3])),
    )
    return tuple(steps[i] for i in sorted(range(len(steps)), key=order.__getitem__))


def _luma(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u
