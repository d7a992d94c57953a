"""Where the class token looks: attention maps of a block, by head, on average, and as a mask."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from msn.evaluation.frozen import FrozenEncoder
from msn.models.encoder import Taps
from msn.visualize.sheet import covered, enlarged, padded, sheet

LOST = 128  # gray level of patches that the encoder does not see
DIM = 0.2  # brightness of what is outside of the mask


class Attention(NamedTuple):
    """Images, whole patches of them, and what share of its attention the class token gives each.

    Attributes:
        images: uint8 (H, W, C), N of any sizes.
        maps: float32 (heads, rows, columns) of each image; NaN for patches that it lost.
        itself: what the class token gives to itself, (N, heads): with it a map sums to 1.
        mass: the share of the mean map that masks hold.
    """

    images: list[np.ndarray]
    maps: list[np.ndarray]
    itself: np.ndarray
    mass: float

    def masks(self) -> list[np.ndarray]:
        """Find the smallest set of patches with the share `mass` of each mean map: (rows, columns).

        That share is of what goes to patches. Of equal patches the first one counts.
        """
        return [smallest_set(heads.mean(axis=0), self.mass) for heads in self.maps]

    def picture(self) -> np.ndarray:
        """Draw a row for each image: itself, a map of each head, their mean, and the mask.

        Each map has its own scale, from 0 to its largest value.
        """
        names = ["image", *(f"head {i}" for i in range(len(self.maps[0]))), "mean"]
        rows = [
            [image, *(_colored(one, image.shape) for one in (*heads, heads.mean(axis=0)))]
            for image, heads in zip(self.images, self.maps, strict=True)
        ]
        columns = dict(zip(names, map(padded, zip(*rows, strict=True)), strict=True))
        columns[f"{self.mass:.0%}"] = padded(
            [
                (image * enlarged(np.where(mask, 1, DIM), image.shape)[..., None]).astype(np.uint8)
                for image, mask in zip(self.images, self.masks(), strict=True)
            ]
        )
        return sheet(columns)

    def numbers(self) -> dict[str, Any]:
        """List for each image its grid, and how the mean map is spread."""
        means = [heads.mean(axis=0) for heads in self.maps]
        return {
            "mass": self.mass,
            "images": {
                "size": [list(image.shape[:2]) for image in self.images],
                "grid": [list(mean.shape) for mean in means],
                "patches_seen": [int(np.isfinite(mean).sum()) for mean in means],
                "patches_of_mask": [int(mask.sum()) for mask in self.masks()],
                "share_of_largest_patch": [
                    float(np.nanmax(mean) / max(np.nansum(mean), 1e-12)) for mean in means
                ],
                "share_of_class_token_itself": self.itself.mean(axis=1).tolist(),
            },
        }


def attention(
    encoder: FrozenEncoder,
    views: Iterable[np.ndarray],
    *,
    block: int = -1,
    mask: float = 0.0,
    mass: float = 0.6,
) -> Attention:
    """Compute where the class token of a block looks in each image.

    Args:
        encoder: a Vision Transformer.
        views: uint8 (H, W, C), of any sizes.
        block: number of the block, from 0, or from the last back, -1.
        mask: share of the patches to drop, drawn by the number of the view.
        mass: share of the mean map that the mask holds, above 0, up to 1.

    Raises:
        UserError: the encoder has no attention, no such block, or too few patches to drop.
    """
    encoder.check(Taps(mask=mask))
    images, maps, itself = [], [], []
    for number, view in enumerate(views):
        batch = torch.from_numpy(view)[None]
        (weights,) = encoder.attention(batch, [number], block=block, mask=mask).numpy()
        grid = encoder.model.grid(*view.shape[:2])
        images.append(covered(view, grid, encoder.model.pitch))
        maps.append(weights[:, 1:].reshape(-1, *grid))
        itself.append(weights[:, 0])
    return Attention(images, maps, np.stack(itself), mass)


def smallest_set(shares: np.ndarray, mass: float) -> np.ndarray:
    """Choose the fewest cells that hold a share of the sum; NaN holds nothing.

    Of equal ones the first are taken.
    """
    values = np.nan_to_num(shares.astype(np.float64)).ravel()
    order = np.argsort(-values, kind="stable")
    total = values[order].cumsum()
    chosen = np.zeros(values.size, bool)
    chosen[order[: 1 + int(np.searchsorted(total, mass * total[-1] * (1 - 1e-12)))]] = True
    return chosen.reshape(shares.shape)


def _colored(shares: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Color a map from 0 to its largest value, and enlarge it: uint8 (H, W, 3)."""
    levels = np.nan_to_num(shares / max(float(np.nanmax(shares)), 1e-12) * 255)
    colors = cv2.applyColorMap(levels.round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return enlarged(np.where(np.isnan(shares)[..., None], np.uint8(LOST), colors), shape)
