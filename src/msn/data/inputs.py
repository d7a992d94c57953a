"""Images given from Python: of Pillow, arrays or tensors, one or many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from msn.data.levels import UnknownScale, with_levels
from msn.data.normalization import Normalization
from msn.runtime.errors import UserError
from msn.runtime.integrity import is_dense

NORMALIZE = "give uint8, or normalize them first: (x - mean) / std"


def images_or_views(
    given: Any, channels: int, normalization: Normalization
) -> Tensor | list[np.ndarray]:
    """Convert given images to a list of uint8 (H, W, C), or given finished views to one tensor.

    Args:
        given: one or a list of images of Pillow or of uint8 arrays, (H, W, C) or (C, H, W), of any
            sizes: images. A tensor, or a list of equal ones: finished views, uint8 (N, H, W, C) or
            (N, C, H, W), which comes back as the former, or float (N, C, H, W), which has to be
            normalized; without N it is one. Where both axes have C numbers, the last is C.
        channels: C.
        normalization: that floats are meant to have.

    Raises:
        UserError: it is none of that; says what there is and what it must be.
    """
    if isinstance(given, Tensor):
        return finished_views(given, channels, normalization)
    if isinstance(given, PIL.Image.Image) or (isinstance(given, np.ndarray) and given.ndim < 4):
        given = [] if isinstance(given, np.ndarray) and given.shape == (0,) else [given]
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes):
        raise UserError(f"images: {type(given).__name__}; must be images, arrays or a tensor")
    if len(given) and all(isinstance(one, Tensor) for one in given):
        if len({(one.shape, one.dtype, one.device) for one in given}) > 1:
            raise UserError("images: tensors of several shapes or types; give uint8 arrays instead")
        return finished_views(torch.stack(list(given)), channels, normalization)
    return [pixels(one, channels) for one in given]


def pixels(image: Any, channels: int) -> np.ndarray:
    """Convert one image, of Pillow or an array, to uint8 (H, W, C).

    Raises:
        UserError: it has other channels, or values of another kind.
    """
    if isinstance(image, PIL.Image.Image):
        if channels not in (1, 3):
            raise UserError(
                f"an image of Pillow: the encoder takes {channels} channels, give arrays"
            )
        try:
            image = np.array(with_levels(image).convert("RGB" if channels == 3 else "L"))
        except (OSError, SyntaxError, ValueError, UnknownScale) as error:
            raise UserError(f"an image of Pillow cannot be read ({error})") from None
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image of type {type(image).__name__}: must be a uint8 array")
    found = image[..., None] if image.ndim == 2 and channels == 1 else image
    if found.ndim == 3 and found.shape[2] != channels and found.shape[0] == channels:
        found = np.moveaxis(found, 0, 2)
    if found.ndim != 3 or found.shape[2] != channels or 0 in found.shape or found.dtype != np.uint8:
        raise UserError(
            f"an image of shape {image.shape} and type {image.dtype}: must be uint8"
            f" (height, width, {channels})"
        )
    return found


def finished_views(views: Tensor, channels: int, normalization: Normalization) -> Tensor:
    """Bring finished views to uint8 (N, H, W, C), or to normalized float32 (N, C, H, W).

    Raises:
        UserError: they are neither.
    """
    if not is_dense(views):
        raise UserError("a tensor that is sparse, nested or without values: give a dense one")
    if views.shape == (0,):
        return torch.empty(0, 1, 1, channels, dtype=torch.uint8)
    found = views[None] if views.ndim == 3 else views
    last, second = (found.ndim == 4 and found.shape[axis] == channels for axis in (3, 1))
    if views.dtype == torch.uint8 and (last or second):
        return found if last else found.movedim(1, 3)
    if views.is_floating_point() and second:
        require_normalized(found.detach(), normalization)
        return found.float()
    raise UserError(
        f"a tensor of shape {tuple(views.shape)} and type {views.dtype}: must be uint8"
        f" (N, height, width, {channels}) or (N, {channels}, height, width), or normalized floats"
        f" (N, {channels}, height, width)"
    )


def require_normalized(views: Tensor, normalization: Normalization) -> None:
    """Refuse floats that look like pixels of 0 to 1 or 0 to 255.

    Raises:
        UserError: they do, or are not finite.
    """
    if not views.numel():
        return
    low, high = (float(bound) for bound in views.aminmax())
    if not np.isfinite([low, high]).all():
        raise UserError("images: floats that are not finite; give finite ones")
    black = min(-mean / std for mean, std in zip(*normalization, strict=True))
    white = max((1 - mean) / std for mean, std in zip(*normalization, strict=True))
    if low >= 0 and high <= 1 and black < 0:
        raise UserError(
            f"images: floats of {low:.3g} to {high:.3g} are not normalized; {NORMALIZE}"
        )
    if low >= 0 and high > 2 * max(white, 1):
        raise UserError(
            f"images: floats of {low:.3g} to {high:.3g} are no normalized pixels, of which white is"
            f" {white:.3g}; {NORMALIZE}"
        )
