"""Draw what each view of an image looks like, before any pixel is touched.

A `Draw` is a pure function of keyed uniform numbers and follows the official distribution (paper,
A.1). `msn.data.views` makes its pixels on the CPU; or it does the crop only, and
`msn.data.device_views` the rest, told by the draw as a row of numbers (`pack`).
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from msn.config.sections.data import Augmentation

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop
CROP_TRIES = 10
BLUR_RADIUS = (0.1, 2.0)  # pixels of the view
_LOG_ASPECT = (math.log(ASPECT[0]), math.log(ASPECT[1]))


@dataclass(frozen=True)
class ViewKind:
    """Describe views of one kind: so many square crops of each image.

    Attributes:
        name: what the method knows them by.
        count: views of this kind per image.
        size: side in pixels.
        scale: smallest and largest area of a crop, as shares of the image.
        clamp: cut a rectangle that does not fit to the image, in place of drawing another.
    """

    name: str
    count: int
    size: int
    scale: tuple[float, float]
    clamp: bool = False


@dataclass(frozen=True)
class ViewSpec:
    """Describe all views of an image, in the order in which they are drawn.

    With `augmentation.augment_on` "device" views are cropped and resized only, and their draws go
    with them.
    """

    kinds: tuple[ViewKind, ...]
    augmentation: Augmentation

    @property
    def count(self) -> int:
        """The number of views of an image."""
        return sum(kind.count for kind in self.kinds)

    @property
    def on_device(self) -> bool:
        """Whether the device does all but the crops."""
        return self.augmentation.augment_on == "device"


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Operation(IntEnum):
    """The steps of color jitter."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


Jitter = tuple[tuple[Operation, float], ...]
"""Operations with their factors, in the order in which they are applied."""


class Draw(NamedTuple):
    """What one view looks like: a pure description, without pixels."""

    box: Box
    flip: bool
    jitter: Jitter
    grayscale: bool
    blur: float | None  # radius in pixels


# The columns of a packed draw.
FLIP = 0
OPERATIONS = slice(1, 5)  # of the jitter, by place
FACTORS = slice(5, 9)  # likewise
GRAYSCALE = 9
BLUR = 10  # radius, 0 for none
COLUMNS = 11

_NO_JITTER: Jitter = (
    (Operation.BRIGHTNESS, 1.0),
    (Operation.CONTRAST, 1.0),
    (Operation.SATURATION, 1.0),
    (Operation.HUE, 0.0),
)


def pack(draw: Draw) -> tuple[float, ...]:
    """Pack all of a draw but its box into `COLUMNS` numbers."""
    operations, factors = zip(*(draw.jitter or _NO_JITTER), strict=True)
    return (draw.flip, *operations, *factors, draw.grayscale, draw.blur or 0.0)


def draw_view(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    spec: Augmentation,
    *,
    clamp: bool = False,
) -> Draw:
    """Draw one view of a (height, width) image, always from the same count of random numbers."""
    # Each decision has its own place among the numbers: one switched off moves no other.
    u = generator.random(2 * CROP_TRIES + 15).tolist()
    flip, jitter, gray, blur, radius, top, left = u[:7]
    return Draw(
        box=crop_box(height, width, scale, u[15:], (top, left), clamp=clamp),
        flip=flip < spec.flip,
        jitter=(
            _draw_jitter(spec.color_jitter_strength, u[7:11], u[11:15])
            if jitter < spec.color_jitter
            else ()
        ),
        grayscale=gray < spec.grayscale,
        blur=_between(BLUR_RADIUS, radius) if blur < spec.blur else None,
    )


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    tries: list[float],
    place: tuple[float, float],
    *,
    clamp: bool = False,
) -> Box:
    """Choose a random rectangle of an area and aspect, as torchvision's RandomResizedCrop does.

    Args:
        height, width: of the image, in pixels.
        scale: smallest and largest share of the image's area.
        tries: uniform numbers, a pair (area, aspect) for each attempt at a rectangle that fits.
        place: uniform numbers that place it, from top and left.
        clamp: cut the first attempt to the image, as TensorFlow's crops are.
    """
    top, left = place
    for i in range(0, len(tries), 2):
        area = height * width * _between(scale, tries[i])
        aspect = math.exp(_between(_LOG_ASPECT, tries[i + 1]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if clamp:
            w, h = min(max(w, 1), width), min(max(h, 1), height)
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
    # None fits, e.g. in a very long image: the largest centered rectangle of an allowed aspect.
    h = min(height, round(width / ASPECT[0]))
    w = min(width, round(height * ASPECT[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _draw_jitter(strength: float, factors: list[float], order: list[float]) -> Jitter:
    """Draw the factors of brightness, contrast, saturation and hue, and their random order."""
    reach = 0.8 * strength
    around_one = (max(0.0, 1 - reach), 1 + reach)
    around_zero = (-0.2 * strength, 0.2 * strength)
    steps = (
        (Operation.BRIGHTNESS, _between(around_one, factors[0])),
        (Operation.CONTRAST, _between(around_one, factors[1])),
        (Operation.SATURATION, _between(around_one, factors[2])),
        (Operation.HUE, _between(around_zero, factors[3])),
    )
    return tuple(steps[i] for i in sorted((0, 1, 2, 3), key=order.__getitem__))


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u
