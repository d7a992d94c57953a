"""Color jitter against torchvision's on PIL images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from msn.data.color import BLOCK, adjust
from msn.data.draws import Jitter, Operation

THEIRS: dict[Operation, Callable[[Any, float], Any]] = {
    Operation.BRIGHTNESS: F.adjust_brightness,
    Operation.CONTRAST: F.adjust_contrast,
    Operation.SATURATION: F.adjust_saturation,
    Operation.HUE: F.adjust_hue,
}
FACTORS = st.floats(0, 2)
TURNS = st.floats(-0.5, 0.5)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Here, not within the deadline of an example."""
    for channels in (1, 3):
        adjust(np.zeros((2, 2, channels), np.uint8), ())


def adjusted(image: np.ndarray, jitter: Jitter, *, grayscale: bool = False) -> np.ndarray:
    view = image.copy()
    adjust(view, jitter, grayscale=grayscale)
    return view


def pil(image: np.ndarray, jitter: Jitter, *, grayscale: bool = False) -> np.ndarray:
    result = Image.fromarray(image)
    for operation, factor in jitter:
        result = THEIRS[operation](result, factor)
    return np.asarray(F.to_grayscale(result, 3) if grayscale else result)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(
    seed=st.integers(0, 10**6),
    # Blocks that are full, and a rest.
    shape=st.sampled_from([(1, 1), (5, 7), (32, 32), (45, 71)]),
    factors=st.lists(FACTORS, min_size=3, max_size=3),
    order=st.permutations([Operation.BRIGHTNESS, Operation.CONTRAST, Operation.SATURATION]),
    length=st.integers(0, 3),
    grayscale=st.booleans(),
)
def test_all_but_hue_is_exactly_torchvisions(
    seed: int,
    shape: tuple[int, int],
    factors: list[float],
    order: list[Operation],
    length: int,
    grayscale: bool,
) -> None:
    image = noise(seed, *shape, 3)
    jitter = tuple(zip(order, factors, strict=True))[:length]
    np.testing.assert_array_equal(
        adjusted(image, jitter, grayscale=grayscale), pil(image, jitter, grayscale=grayscale)
    )
    gray = image[..., 0].copy()
    tones = tuple(step for step in jitter if step[0] != Operation.SATURATION)
    np.testing.assert_array_equal(adjusted(gray, jitter, grayscale=grayscale), pil(gray, tones))


@given(seed=st.integers(0, 10**6), turn=TURNS)
def test_hue_is_torchvisions(seed: int, turn: float) -> None:
    """But where PIL, in double precision, comes to lie on the other side of a whole number."""
    image = noise(seed, 64, 64, 3)
    jitter = ((Operation.HUE, turn),)
    difference = np.abs(adjusted(image, jitter).astype(int) - pil(image, jitter))
    assert (difference > 0).mean() <= 0.005
    assert difference.max() <= 6  # what one step of 256 can make


def test_hue_of_every_color() -> None:
    """All colors of 6 bits, grays among them, turned back and forth."""
    levels = np.arange(64, dtype=np.uint8) * 4 + 3
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(512, 512, 3)
    for turn in (-0.1, 0.1, 0.37):
        jitter = ((Operation.HUE, turn),)
        difference = np.abs(adjusted(colors, jitter).astype(int) - pil(colors, jitter))
        assert (difference > 0).mean() <= 0.005
        assert difference.max() <= 6


def test_all_in_their_order_on_photographs() -> None:
    jitter = (
        (Operation.CONTRAST, 1.3),
        (Operation.HUE, -0.07),
        (Operation.BRIGHTNESS, 1.2),
        (Operation.SATURATION, 0.7),
    )
    for photo in load_sample_images().images:
        for order in (jitter, jitter[::-1]):
            expected = pil(photo, order).astype(int)
            difference = np.abs(adjusted(photo, order) - expected)
            assert (difference > 0).mean() <= 0.02
            assert difference.max() <= 12
        assert np.abs(pil(photo, jitter) - pil(photo, jitter[::-1]).astype(int)).max() > 12


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels_are_no_colors(channels: int) -> None:
    image = noise(0, 40, BLOCK // 20, channels)
    colors = ((Operation.SATURATION, 0.3), (Operation.HUE, 0.1))
    np.testing.assert_array_equal(adjusted(image, colors, grayscale=True), image)
    brighter = adjusted(image, ((Operation.BRIGHTNESS, 1.4),))
    for c in range(channels):
        expected = pil(image[..., c].copy(), ((Operation.BRIGHTNESS, 1.4),))
        np.testing.assert_array_equal(brighter[..., c], expected)


@pytest.mark.slow
def test_without_a_folder_for_the_cache_it_runs(tmp_path: Path) -> None:
    """An installation that nobody may write to, and no home."""
    occupied = tmp_path / "file"
    occupied.write_text("")
    code = (
        "import numpy as np; from msn.data.color import adjust; v = np.full((4, 4, 3), 100, 'u1');"
        "adjust(v, ((0, 1.5),)); print(v.min(), v.max())"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(occupied / "none"),
        "HOME": str(occupied),
        "XDG_CACHE_HOME": str(occupied),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["150", "150"], done.stderr
