"""Principal components of patch tokens as colors, on one basis for several images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from msn.evaluation.frozen import FrozenEncoder
from msn.interop.tensorfile import read_file
from msn.runtime.errors import UserError
from msn.runtime.files import replacing
from msn.visualize.sheet import covered, enlarged, padded, sheet

COLORS = 3
DIM = 0.2  # brightness of the background
RANGE = (2, 98)  # percentiles of a component that black and full color stand for


class Basis(NamedTuple):
    """Directions in which tokens vary most; the largest loading of each is positive.

    Attributes:
        mean: of the tokens, float64 (D,).
        components: orthonormal, (3, D); zero where there are fewer.
        explained: share of the variance along each, (3,), descending.
        low, high: values along each that no and full color stand for, (3,).
    """

    mean: np.ndarray
    components: np.ndarray
    explained: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """Give the coordinates of tokens: (..., D) -> (..., 3)."""
        found: np.ndarray = (tokens - self.mean) @ self.components.T
        return found

    def save(self, path: Path) -> None:
        """Write it to a .safetensors file. Raises UserError: it cannot be written."""
        from safetensors.numpy import save_file

        with replacing(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in self._asdict().items()}, temporary)


def load_basis(path: Path, width: int) -> Basis:
    """Read a basis for tokens of a width. Raises UserError: it is none of that."""
    found = {name: tensor.double().numpy() for name, tensor in read_file(path).items()}
    shapes = {"mean": (width,), "components": (COLORS, width)}
    shapes |= dict.fromkeys(("explained", "low", "high"), (COLORS,))
    if {name: array.shape for name, array in found.items()} != shapes:
        raise UserError(
            f"--basis {path}: is no basis for tokens of width {width}; give one that --save-basis"
            " wrote with this encoder"
        )
    return Basis(**found)


class Components(NamedTuple):
    """Images, whole patches of them, and their patch tokens on a common basis.

    Attributes:
        images: uint8 (H, W, C), N of any sizes.
        maps: coordinates of the patches of each, float64 (rows, columns, 3).
        foreground: which patches are drawn in full, bool (rows, columns).
        basis: of all of them.
    """

    images: list[np.ndarray]
    maps: list[np.ndarray]
    foreground: list[np.ndarray]
    basis: Basis

    def picture(self) -> np.ndarray:
        """Draw each image beside its first three components as red, green and blue."""
        colored = [
            enlarged(self._colors(one, front), image.shape)
            for image, one, front in zip(self.images, self.maps, self.foreground, strict=True)
        ]
        return sheet({"image": padded(self.images), "components": padded(colored)})

    def numbers(self) -> dict[str, Any]:
        """List what the components explain, and how much is foreground."""
        return {
            "explained_variance": self.basis.explained.tolist(),
            "images": {
                "grid": [list(one.shape[:2]) for one in self.maps],
                "foreground": [float(front.mean()) for front in self.foreground],
            },
        }

    def _colors(self, coordinates: np.ndarray, front: np.ndarray) -> np.ndarray:
        light = np.where(front, 1, DIM)[..., None]
        return (_levels(coordinates, self.basis.low, self.basis.high) * light).astype(np.uint8)


def pca(
    encoder: FrozenEncoder,
    views: Iterable[np.ndarray],
    *,
    basis: Basis | None = None,
    foreground: bool = False,
) -> Components:
    """Compute the principal components of the final patch tokens of images.

    Args:
        encoder: any that has a grid of tokens.
        views: uint8 (H, W, C), of any sizes.
        basis: to project on; None fits one to all tokens of these images together.
        foreground: tell patches apart by Otsu's threshold on the first component: the part that
            has less of the images' border is the foreground.
    """
    images, tokens = [], []
    for view in views:
        grid = encoder.model.grid(*view.shape[:2])
        images.append(covered(view, grid, encoder.model.pitch))
        tokens.append(encoder.patches(torch.from_numpy(view)[None])[0].double().numpy())
    basis = basis or fit(np.concatenate([one.reshape(-1, one.shape[-1]) for one in tokens]))
    maps = [basis.project(one) for one in tokens]
    front = [np.ones(one.shape[:2], bool) for one in maps]
    return Components(images, maps, _foreground(maps) if foreground else front, basis)


def fit(tokens: np.ndarray) -> Basis:
    """Fit a basis to tokens (M, D)."""
    from sklearn.decomposition import PCA

    count = min(COLORS, *tokens.shape)
    with np.errstate(invalid="ignore"):  # tokens that are all the same have no variance to share
        found = PCA(count, svd_solver="full").fit(tokens)
    components, explained = np.zeros((COLORS, tokens.shape[1])), np.zeros(COLORS)
    components[:count] = found.components_
    explained[:count] = np.nan_to_num(found.explained_variance_ratio_)
    projected = (tokens - found.mean_) @ components.T
    return Basis(found.mean_, components, explained, *np.percentile(projected, RANGE, axis=0))


def _levels(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Scale values from low..high to 0..255."""
    scaled: np.ndarray = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1) * 255
    return scaled


def _foreground(maps: list[np.ndarray]) -> list[np.ndarray]:
    """Split all patches in two by the first component, the foreground being less at the border."""
    first = [one[..., 0] for one in maps]
    together = np.concatenate([one.ravel() for one in first])
    levels = _levels(together, together.min(), together.max()).round().astype(np.uint8)
    _, split = cv2.threshold(levels[None], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    ends = np.cumsum([one.size for one in first])[:-1]
    above = [
        part.reshape(one.shape).astype(bool)
        for part, one in zip(np.split(split[0], ends), first, strict=True)
    ]
    border = np.concatenate([_border(part) for part in above])
    return above if border.mean() <= 0.5 else [~part for part in above]


def _border(cells: np.ndarray) -> np.ndarray:
    return np.concatenate([cells[0], cells[-1], cells[1:-1, 0], cells[1:-1, -1]])
