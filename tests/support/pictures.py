"""What pictures are made from: weights in a file, and images to look at."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from msn.cli.main import main
from msn.interop import official
from msn.interop.weights import Weights

DIGITS = ["data.source=digits", "data.root_path=null"]


def saved(path: Path, weights: Weights) -> Path:
    """Weights in a file like the released ones."""
    official.write(path, weights)
    return path


def drawn(out: Path, *words: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Run a command of `msn visualize` twice: pixels and numbers, which are the same."""
    contents = []
    for _ in range(2):
        assert main(["visualize", *words, "--out", str(out), "--device", "cpu"]) == 0
        contents.append((out.read_bytes(), out.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    picture = np.asarray(PIL.Image.open(out))
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    return picture, json.loads(contents[0][1])


def photographs(folder: Path, *shapes: tuple[int, ...]) -> Path:
    """Images of noise: .png of 1 or 3 channels, else .npy."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for i, shape in enumerate(shapes):
        pixels = generator.integers(256, size=shape, dtype=np.uint8)
        if shape[2] in (1, 3):
            PIL.Image.fromarray(pixels.squeeze()).save(folder / f"{i}.png")
        else:
            np.save(folder / f"{i}.npy", pixels)
    return folder
