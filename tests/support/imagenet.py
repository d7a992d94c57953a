"""A tiny tree of JPEGs, named as ImageNet's files are."""

from pathlib import Path

import cv2
import numpy as np

CLASSES = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 2096294, 4235860, 4239074)]
TRAIN, VAL = 6, 4  # images of each class


def make_tree(root: Path) -> list[list[str]]:
    """`root`/images/{train,val}: a color for each class, with noise. Training names by class."""
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 256, (len(CLASSES), 3))
    names = []
    for label, wnid in enumerate(CLASSES):
        for split, count in (("train", TRAIN), ("val", VAL)):
            folder = root / "images" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.normal(0, 40, (24, 30, 3))
                pixels = np.clip(colors[label] + noise, 0, 255).astype(np.uint8)
                stem = f"{wnid}_{7 * number + 3}" if split == "train" else f"val_{label}{number}"
                cv2.imwrite(str(folder / f"{stem}.JPEG"), pixels)
        names.append([f"{wnid}_{7 * number + 3}.JPEG" for number in range(TRAIN)])
    return names
