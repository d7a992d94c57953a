"""The handwritten digits that scikit-learn carries: images without a download."""

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
        from sklearn.datasets import load_digits

        digits = load_digits()
        # A fixed order of its own: the split is the same for every seed of a run.
        order = np.argsort(keyed.generator(0, keyed.Stream.SPLIT).random(len(digits.target)))
        self._order = order[:TRAIN] if split == "train" else order[TRAIN:]
        gray = np.rint(digits.images[self._order] * (255 / 16)).astype(np.uint8)
        labels = digits.target[self._order].astype(np.int64)
        super().__init__({"images": gray[..., None]}, labels, channels=channels, title="digits")
        self.mean = (self.MEAN,) * channels
        self.std = (self.STD,) * channels

    def name(self, index: int) -> str:
        return f"digits/{self._order[index]}"
