"""The handwritten digits that scikit-learn carries: images without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from msn.data.sources.base import ArraySource
from msn.runtime import keyed

TRAIN = 1297


class Digits(ArraySource):
    """The 1,797 handwritten digits of scikit-learn: 8x8 px, 1,297 to train, 500 held out."""

    # Of the training split, in double precision: images / 255, then .mean() and .std().
    MEAN = 0.3051369
    STD = 0.3756648

    def __init__(self, *, split: str, channels: int = 1) -> None:
        rows = _rows()
        # A fixed order of its own: the split is the same for every seed of a run.
        order = np.argsort(keyed.generator(0, keyed.Stream.SPLIT).random(len(rows)))
        self._order = order[:TRAIN] if split == "train" else order[TRAIN:]
        images = rows[self._order, :-1].reshape(-1, 8, 8)
        gray = np.rint(images * (255 / 16)).astype(np.uint8)
        labels = rows[self._order, -1].astype(np.int64)
        super().__init__({"images": gray[..., None]}, labels, channels=channels, title="digits")
        self.mean = (self.MEAN,) * channels
        self.std = (self.STD,) * channels

    def name(self, index: int) -> str:
        return f"digits/{self._order[index]}"


def _rows() -> np.ndarray:
    """Read the file behind `load_digits`, (1797, 65): pixels from 0 to 16, then the label.

    scikit-learn itself is not imported: that takes longer than all else that a small run imports.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(path, delimiter=",")
