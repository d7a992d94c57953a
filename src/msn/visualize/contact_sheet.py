"""Draw the views of an image side by side."""

from dataclasses import replace

import cv2
import numpy as np

from msn.config.kinds import Config, MSNConfig
from msn.data.batch import allocate
from msn.data.image import Image
from msn.data.views import make_views
from msn.methods import method_of
from msn.methods.msn.model import RANDOM
from msn.models.masking import random_keep
from msn.runtime.keyed import Stream, seed64

GAP = 8  # pixels between views
HEADER = 24
LEAST = 96  # side that the views of a small encoder are magnified to, px
PAPER = 200  # gray: white views have an edge on it, as black ones have
DROPPED = 0.2  # brightness of a dropped patch

Pictures = dict[str, list[np.ndarray]]
"""The views of an image by kind, the largest first."""


def contact_sheet(config: Config, image: Image, *, epochs: int) -> np.ndarray:
    """Draw all views, one row for each epoch; patches that MSN's random views lose are dark.

    Args:
        image: as the first sample of a run would be.
        epochs: how many rows.

    Returns:
        uint8 (H, W, 3), RGB; each pixel of small views is a square of several.

    Raises:
        BadImage: it cannot be decoded.
    """
    spec = method_of(config).view_spec(config)
    spec = replace(spec, augmentation=spec.augmentation.model_copy(update={"augment_on": "cpu"}))
    (views,) = allocate(spec, 1, image.shape[2]).samples()
    rows = []
    for epoch in range(epochs):
        make_views(image, spec, seed=config.meta.seed, epoch=epoch, sample=0, out=views)
        pictures = {kind: list(of_kind) for kind, of_kind in views.kinds.items() if len(of_kind)}
        if isinstance(config, MSNConfig):
            pictures[RANDOM] = [_masked(config, view, epoch) for view in pictures[RANDOM]]
        rows.append(_row(pictures))
    sheet = np.concatenate([_header(rows[0].shape[1], pictures), *rows])
    return np.pad(sheet, ((0, 0), (GAP, 0), (0, 0)), constant_values=PAPER)


def _masked(config: MSNConfig, view: np.ndarray, step: int) -> np.ndarray:
    """Darken the patches of a view that the anchor does not see at a step."""
    patch, side = config.meta.patch_size, config.meta.grid(len(view))
    seed = seed64(config.meta.seed, Stream.MASK, step)
    keep = random_keep(side * side, config.data.patch_drop, seed=seed, images=1)
    light = np.full(side * side, DROPPED)
    light[slice(None) if keep is None else keep.numpy()] = 1
    light = light.reshape(side, side).repeat(patch, 0).repeat(patch, 1)[: len(view), : len(view)]
    seen = np.full(view.shape, DROPPED)  # pixels that fill no whole patch are not seen
    seen[: len(light), : len(light)] = light[..., None]
    pixels: np.ndarray = (view * seen).astype(np.uint8)
    return pixels


def _row(pictures: Pictures) -> np.ndarray:
    zoom, side = _zoom(pictures), _side(pictures)
    framed = [_framed(view, zoom) for views in pictures.values() for view in views]
    large = [view for view in framed if len(view) == side * zoom + GAP]
    small = framed[len(large) :]
    stacked = max(1, len(large[0]) // len(small[0])) if small else 1  # small ones above each other
    columns = [small[i : i + stacked] for i in range(0, len(small), stacked)]
    blocks = large + [np.concatenate(column) for column in columns]
    height = max(map(len, blocks))
    return np.concatenate([_filled(block, height) for block in blocks], axis=1)


def _side(pictures: Pictures) -> int:
    """Measure the views of the first kind, which is as large as any."""
    return len(next(iter(pictures.values()))[0])


def _zoom(pictures: Pictures) -> int:
    """Choose how much to magnify the views so that their names fit above them."""
    return -(-LEAST // _side(pictures))


def _framed(view: np.ndarray, zoom: int) -> np.ndarray:
    """Convert a view to RGB, from its first three channels, with a margin right and below."""
    rgb = view[..., :3] if view.shape[2] >= 3 else np.repeat(view[..., :1], 3, axis=2)
    large = rgb.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return np.pad(large, ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER)


def _filled(block: np.ndarray, height: int) -> np.ndarray:
    missing = height - len(block)
    return np.pad(block, ((0, missing), (0, 0), (0, 0)), constant_values=PAPER)


def _header(width: int, pictures: Pictures) -> np.ndarray:
    """Draw the names of the kinds of views, each above the first view of its kind."""
    header = np.full((HEADER, width, 3), PAPER, np.uint8)
    step, left = _side(pictures) * _zoom(pictures) + GAP, 0
    for name, views in pictures.items():
        where = (left, HEADER - 8)
        cv2.putText(header, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        left += step * len(views)
    return header
