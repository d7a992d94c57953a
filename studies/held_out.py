"""Images of the studies: a part of the training images is set aside to choose settings on.

Encoders are trained, and settings chosen, on files that hold no test image.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msn.config.sections.data import Images
from msn.data.sources import Source, open_source
from msn.data.sources.idx import PREFIXES
from msn.runtime import keyed
from msn.runtime.files import replacing


@dataclass(frozen=True)
class HeldOut:
    """Labeled gray images whose training split loses some, always the same, for validation.

    Attributes:
        images: where they are, with splits train and val (the test images).
        validation: number of training images set aside.
        folder: of the IDX files that hold the parts of the training split.
        tail: images of the first class over those of the last among those to learn from; the
            classes between fall off geometrically. 1 takes all images.
    """

    images: Images
    validation: int
    folder: Path
    tail: float = 1.0

    def prepared(self) -> Images:
        """Write the parts where they are missing; tell where: train, and validation as val."""
        source = open_source(self.images, "train")
        order = keyed.generator(0, keyed.Stream.SPLIT).permutation(len(source))
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = source.labels()
        assert labels is not None
        train = thinned(order[self.validation :], labels, self.tail)
        for split, part in (("train", train), ("val", order[: self.validation])):
            _write(source, np.sort(part), self.folder / PREFIXES[split])
        return Images(source="idx", root_path=str(self.folder))

    def splits(self, *, test: bool) -> tuple[Source, Source]:
        """Open the images to learn from, and the validation part or the test images."""
        parts = self.prepared()
        return open_source(parts, "train"), open_source(self.images if test else parts, "val")


def thinned(part: np.ndarray, labels: np.ndarray, tail: float) -> np.ndarray:
    """Keep the first images of each class in a part: of the last a `tail`-th of the first's."""
    last = int(labels.max())
    most = int(np.bincount(labels[part]).min())
    kept = [
        part[labels[part] == label][: round(most * tail ** (-label / last))]
        for label in range(last + 1)
    ]
    return part if tail == 1 else np.concatenate(kept)


def _write(source: Source, part: np.ndarray, stem: Path) -> None:
    labels = source.labels()
    assert labels is not None
    images, numbers = Path(f"{stem}-images-idx3-ubyte"), Path(f"{stem}-labels-idx1-ubyte")
    if images.exists() and numbers.exists():
        return
    pixels = np.stack([source.read(index).image.pixels()[..., 0] for index in part.tolist()])
    for path, values in ((images, pixels), (numbers, labels[part].astype(np.uint8))):
        with replacing(path) as temporary:
            header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            temporary.write_bytes(header + values.tobytes())
