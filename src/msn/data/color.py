"""Color jitter and grayscale as torchvision does them on PIL images, compiled by numba.

Pixels are taken through all steps a block at a time, within the first cache; OpenCV passes over the
view for each step, for the hue three times. Between steps values are whole numbers, as in PIL, and
the arithmetic is IEEE's, so that every processor makes the same pixels.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy import float32, int32, uint8

from msn.data.draws import Jitter, Operation

BRIGHTNESS, CONTRAST, SATURATION, HUE = map(int, Operation)
GRAYSCALE = HUE + 1  # a step like those of the jitter
BLOCK = 1024  # pixels
Planes = tuple[np.ndarray, np.ndarray, np.ndarray]
_OPTIONS = {"error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz"}, "nogil": True}


def adjust(view: np.ndarray, jitter: Jitter, *, grayscale: bool = False) -> None:
    """Apply the steps of a color jitter in order, then grayscale if asked for, in place.

    Brightness blends with black, contrast with the mean gray of the view, saturation with its gray
    version (ITU-R 601 luma): a factor of 0 is that, 1 the view. Hue turns the color circle by
    `factor` of a full turn. Only three channels are colors: of others contrast takes the mean of
    all for their gray, and saturation, hue and grayscale change nothing.

    Args:
        view: contiguous uint8 (H, W, C) or (H, W).
    """
    colors = view.ndim == 3 and view.shape[2] == 3
    # So in torchvision, though a full turn is 256 steps of the hue.
    steps = [(int(step), int(f * 255) if step == HUE else f) for step, f in jitter]
    steps += [(GRAYSCALE, 0)] * grayscale
    if not colors:
        steps = [step for step in steps if step[0] in (BRIGHTNESS, CONTRAST)]
    operations = np.array([operation for operation, _ in steps], int32)
    factors = np.array([factor for _, factor in steps], float32)
    (_adjust_rgb if colors else _adjust_gray)(view.reshape(-1), operations, factors)


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(function, cache=True, **_OPTIONS)
    except RuntimeError:  # there is no folder for the cache
        return numba.njit(function, **_OPTIONS)


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(function, inline="always", **_OPTIONS)


@_inlined
def _blended(value: Any, gray: Any, factor: Any) -> Any:
    return np.floor(min(max(gray + factor * (value - gray), float32(0)), float32(255)))


@_inlined
def _luma(red: Any, green: Any, blue: Any) -> Any:
    # Exact: the sum stays below 2**24.
    total = red * float32(19595) + green * float32(38470) + blue * float32(7471)
    return np.floor((total + float32(2**15)) * float32(2**-16))


@_inlined
def _less(largest: Any, spread: Any, share: Any) -> Any:
    share = min(max(share, float32(0)), float32(1))
    return np.floor(largest - spread * share + float32(0.5))


@_compiled
def _blend(plane: np.ndarray, gray: float, factor: float) -> None:
    for i in range(plane.size):
        plane[i] = _blended(plane[i], gray, factor)


@_compiled
def _saturate(red: np.ndarray, green: np.ndarray, blue: np.ndarray, factor: float) -> None:
    for i in range(red.size):
        gray = _luma(red[i], green[i], blue[i])
        red[i] = _blended(red[i], gray, factor)
        green[i] = _blended(green[i], gray, factor)
        blue[i] = _blended(blue[i], gray, factor)


@_compiled
def _turn_hue(red: np.ndarray, green: np.ndarray, blue: np.ndarray, shift: float) -> None:
    """Turn the hue by way of PIL's hue and saturation, which are whole numbers up to 255."""
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        largest = max(r, max(g, b))
        chroma = largest - min(r, min(g, b))
        slope = g - b if largest == r else (b - r if largest == g else r - g)
        sixth = float32(0) if largest == r else (float32(2) if largest == g else float32(4))
        hue = slope / max(chroma, float32(1)) + sixth
        hue = hue + float32(6) if hue < float32(0) else hue
        hue = np.floor(hue * float32(255 / 6)) + shift
        hue = (hue - float32(256) * np.floor(hue * float32(1 / 256))) * float32(6 / 255)
        saturation = np.floor(chroma * float32(255) / max(largest, float32(1)))
        spread = largest * saturation * float32(1 / 255)
        red[i] = _less(largest, spread, float32(2) - abs(hue - float32(3)))
        green[i] = _less(largest, spread, abs(hue - float32(2)) - float32(1))
        blue[i] = _less(largest, spread, abs(hue - float32(4)) - float32(1))


@_compiled
def _make_gray(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> None:
    for i in range(red.size):
        gray = _luma(red[i], green[i], blue[i])
        red[i], green[i], blue[i] = gray, gray, gray


@_compiled
def _sum_of_luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> int32:
    total = int32(0)  # of one block
    for i in range(red.size):
        total += int32(_luma(red[i], green[i], blue[i]))
    return total


@_compiled
def _load(values: np.ndarray, bytewise: Planes, planes: Planes) -> None:
    """Split pixels into planes, then convert to floats; in one loop the compiled code is slow."""
    red, green, blue = bytewise
    for i in range(red.size):
        red[i], green[i], blue[i] = values[3 * i], values[3 * i + 1], values[3 * i + 2]
    for source, plane in zip(bytewise, planes):  # noqa: B905 - numba has no `strict`
        for i in range(plane.size):
            plane[i] = source[i]


@_compiled
def _store(planes: Planes, bytewise: Planes, values: np.ndarray) -> None:
    for plane, target in zip(planes, bytewise):  # noqa: B905
        for i in range(plane.size):
            target[i] = uint8(int32(plane[i]))
    red, green, blue = bytewise
    for i in range(red.size):
        values[3 * i], values[3 * i + 1], values[3 * i + 2] = red[i], green[i], blue[i]


@_compiled
def _step(planes: Planes, operation: int, factor: float, gray: float) -> None:
    red, green, blue = planes
    if operation in (BRIGHTNESS, CONTRAST):
        for plane in planes:
            _blend(plane, float32(0) if operation == BRIGHTNESS else gray, factor)
    elif operation == SATURATION:
        _saturate(red, green, blue, factor)
    elif operation == HUE:
        _turn_hue(red, green, blue, factor)
    else:
        _make_gray(red, green, blue)


@_compiled
def _pass(
    values: np.ndarray, operations: np.ndarray, factors: np.ndarray, gray: float, summed: bool
) -> int:
    """Apply all steps to all pixels, and return the sum of the resulting luma if `summed`."""
    pixels, total = values.size // 3, 0
    floats, whole = np.empty((3, BLOCK), float32), np.empty((3, BLOCK), uint8)
    for start in range(0, pixels, BLOCK):
        length = min(BLOCK, pixels - start)
        block = values[3 * start : 3 * (start + length)]
        # Rows one by one: of a slice of all three numba does not know that they are contiguous.
        planes = (floats[0, :length], floats[1, :length], floats[2, :length])
        bytewise = (whole[0, :length], whole[1, :length], whole[2, :length])
        _load(block, bytewise, planes)
        for i in range(operations.size):
            _step(planes, operations[i], factors[i], gray)
        if summed:
            total += _sum_of_luma(*planes)
        if operations.size:
            _store(planes, bytewise, block)
    return total


@_compiled
def _adjust_rgb(values: np.ndarray, operations: np.ndarray, factors: np.ndarray) -> None:
    """Adjust RGB pixels in one pass, plus one up to contrast, which needs the mean by then."""
    first, gray = 0, float32(0)
    for last in range(operations.size):
        if operations[last] == CONTRAST:
            total = _pass(values, operations[:last], factors[:last], gray, True)
            first, gray = last, float32(np.floor(total / (values.size // 3) + 0.5))
    _pass(values, operations[first:], factors[first:], gray, False)


@_compiled
def _adjust_gray(values: np.ndarray, operations: np.ndarray, factors: np.ndarray) -> None:
    for step in range(operations.size):
        gray = float32(0)
        if operations[step] == CONTRAST:
            gray = float32(np.floor(values.sum() / values.size + 0.5))
        for i in range(values.size):
            values[i] = uint8(int32(_blended(float32(values[i]), gray, factors[step])))
