"""Sheets of small pictures under headings, which all drawings of images are laid out on."""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

GAP = 8  # pixels between pictures
HEADER = 24
LEAST = 96  # side that small pictures are magnified to, px
PAPER = 200  # gray: white pictures have an edge on it, as black ones have
INK = (29, 53, 87)


def sheet(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw pictures in columns with headings: row i holds picture i of each.

    Args:
        columns: uint8 (N, H, W, C) by heading, all of one shape.

    Returns:
        uint8 (height, width, 3), RGB; each pixel of small pictures is a square of several.
    """
    side = next(iter(columns.values())).shape[2]
    zoom = magnification(side)
    rows = [
        np.concatenate([framed(picture, zoom) for picture in row], axis=1)
        for row in zip(*columns.values(), strict=True)
    ]
    step = side * zoom + GAP
    names = [(i * step, name) for i, name in enumerate(columns)]
    return on_paper([heading(rows[0].shape[1], names), *rows])


def on_paper(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack rows (H, W, 3) of one width, with a margin on the left."""
    return np.pad(np.concatenate(rows), ((0, 0), (GAP, 0), (0, 0)), constant_values=PAPER)


def magnification(side: int) -> int:
    """Choose how much to magnify pictures of a side so that a name fits above each."""
    zoom: int = -(-LEAST // side)
    return zoom


def framed(picture: np.ndarray, zoom: int) -> np.ndarray:
    """Convert a picture to RGB, from its first three channels, with a margin right and below."""
    large = rgb(picture).repeat(zoom, axis=0).repeat(zoom, axis=1)
    return np.pad(large, ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER)


def rgb(picture: np.ndarray) -> np.ndarray:
    """Convert a picture (H, W, C) to RGB: its first three channels, or the first as gray."""
    return picture[..., :3] if picture.shape[2] >= 3 else np.repeat(picture[..., :1], 3, axis=2)


def padded(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures of several sizes on paper of one, in RGB: (N, H, W, 3)."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    paper = np.full((len(pictures), height, width, 3), PAPER, np.uint8)
    for place, picture in zip(paper, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = rgb(picture)
    return paper


def covered(picture: np.ndarray, grid: tuple[int, int], stride: int) -> np.ndarray:
    """Cut off the border that whole cells of a grid do not cover."""
    height, width = (
        count * min(stride, side // count)
        for count, side in zip(grid, picture.shape[:2], strict=True)
    )
    return picture[:height, :width]


def enlarged(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the cells of a grid so that they fill a picture of this height and width."""
    up, across = shape[0] // cells.shape[0], shape[1] // cells.shape[1]
    return cells.repeat(up, axis=0).repeat(across, axis=1)


def heading(width: int, names: Iterable[tuple[int, str]]) -> np.ndarray:
    """Draw names, each from its left edge in pixels on: uint8 (HEADER, width, 3)."""
    header = np.full((HEADER, width, 3), PAPER, np.uint8)
    for left, name in names:
        where = (left, HEADER - 8)
        cv2.putText(header, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return header


def bars(values: np.ndarray, width: int) -> np.ndarray:
    """Draw a histogram of values from 0 on, one bar for each: uint8 (LEAST + GAP, width, 3)."""
    drawn = np.full((LEAST + GAP, width, 3), PAPER, np.uint8)
    edges = np.linspace(0, width - GAP, len(values) + 1).round().astype(int)
    for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
        height = round(LEAST * float(value) / max(float(values.max()), 1e-12))
        # A gap between bars, where they are wide enough.
        drawn[LEAST - height : LEAST, left : max(right - (right - left > 2), left)] = INK
    return drawn
