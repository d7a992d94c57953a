"""Masks of square units, as SimMIM draws them: an exact number of units for each image."""

import math

import torch
from torch import Tensor

from msn.models.masking import keyed_noise


def masked_units(units: int, ratio: float) -> int:
    """Count the units, of `units`, that a ratio masks: the ceiling of the float64 product.

    Rounding errors included, as in the official code: 100 units at .55 mask 56.
    """
    return math.ceil(units * ratio)


def draw_orders(units: int, *, seed: int, images: int, first: int = 0) -> Tensor:
    """Draw a permutation of the units for each image: (images, units).

    Args:
        units: N units of an image.
        seed: of the batch; the draw depends on it and on the number of the image, only.
        images: rows to draw.
        first: number of the first of these rows in a larger batch with the same seed.
    """
    return keyed_noise(units, seed=seed, images=images, first=first).argsort(1)


def unit_masks(orders: Tensor, count: int, columns: int) -> Tensor:
    """Mask the first `count` units of each order: (B, units) -> (B, rows, columns), bool.

    Args:
        orders: permutations of the units, row by row of the grid.
        count: units to mask.
        columns: of the grid of units.
    """
    masked = torch.zeros(orders.shape, dtype=torch.bool, device=orders.device)
    masked.scatter_(1, orders[:, :count], value=True)
    masks: Tensor = masked.unflatten(1, (-1, columns))
    return masks


def enlarged(masks: Tensor, factor: int) -> Tensor:
    """Repeat each cell of masks `factor` times along both axes: (B, r, c) -> (B, r * f, c * f)."""
    return masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
