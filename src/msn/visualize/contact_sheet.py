"""Draw the views of an image side by side."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from msn.config.kinds import Config, MSNConfig
from msn.data.batch import allocate
from msn.data.image import Image
from msn.data.views import make_views
from msn.methods import method_of
from msn.methods.msn.model import RANDOM
from msn.models.masking import random_keep
from msn.runtime.keyed import Stream, seed64
from msn.visualize.sheet import GAP, PAPER, framed, heading, magnification, on_paper

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
    return on_paper([heading(rows[0].shape[1], _names(pictures)), *rows])


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
    side = _side(pictures)
    zoom = magnification(side)
    pieces = [framed(view, zoom) for views in pictures.values() for view in views]
    large = [view for view in pieces if len(view) == side * zoom + GAP]
    small = pieces[len(large) :]
    stacked = max(1, len(large[0]) // len(small[0])) if small else 1  # small ones above each other
    columns = [small[i : i + stacked] for i in range(0, len(small), stacked)]
    blocks = large + [np.concatenate(column) for column in columns]
    height = max(map(len, blocks))
    return np.concatenate([_filled(block, height) for block in blocks], axis=1)


def _side(pictures: Pictures) -> int:
    """Measure the views of the first kind, which is as large as any."""
    return len(next(iter(pictures.values()))[0])


def _filled(block: np.ndarray, height: int) -> np.ndarray:
    missing = height - len(block)
    return np.pad(block, ((0, missing), (0, 0), (0, 0)), constant_values=PAPER)


def _names(pictures: Pictures) -> Iterator[tuple[int, str]]:
    """Place the name of each kind of views above the first view of its kind."""
    side, left = _side(pictures), 0
    for name, views in pictures.items():
        yield left, name
        left += (side * magnification(side) + GAP) * len(views)
