"""The augmentation of fine-tuning: keyed, and with no trace on the global generators."""

import random

import numpy as np
import pytest
import torch

from msn.data.augment import Augment, Center, seeded
from msn.data.image import ArrayImage
from msn.runtime import keyed

PIXELS = keyed.generator(0, keyed.Stream.DRAW).integers(256, size=(40, 50, 3), dtype=np.uint8)
IMAGE = ArrayImage(PIXELS, 3)


def augment(**changes: object) -> Augment:
    settings = {
        "size": 32,
        "scale": (0.08, 1.0),
        "flip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "interpolation": "bicubic",
        "seed": 1,
    }
    return Augment(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_keyed_by_epoch_and_image(channels: int) -> None:
    image, view = ArrayImage(PIXELS[..., :channels], channels), augment()
    first = view(image, 0, 7)
    assert first.shape == (32, 32, channels)
    assert first.dtype == np.uint8
    random.random(), np.random.rand(), torch.rand(1)
    assert np.array_equal(first, view(image, 0, 7))
    others = [view(image, 1, 7), view(image, 0, 8), augment(seed=2)(image, 0, 7)]
    assert not any(np.array_equal(first, other) for other in others)


def test_global_generators_are_left_as_they_were() -> None:
    before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
    augment()(IMAGE, 0, 0)
    after = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
    assert after == before


def test_seeded_covers_all_generators() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with seeded(2**62 + 5):
        first = draws()
    with seeded(2**62 + 5):
        assert draws() == first
    with seeded(6):
        assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_a_measured_image_keeps_the_share_of_its_side() -> None:
    """Resized to 32 / 0.5 = 64 px: the middle half of a frame is what is seen."""
    pixels = np.zeros((64, 64, 1), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    image = ArrayImage(pixels, 1)
    assert Center(32, 0.5, "bicubic")(image, 0, 0).min() == 255
    whole = Center(32, 1.0, "bicubic")(image, 0, 0)
    assert whole.shape == (32, 32, 1)
    assert whole[0, 0] == 0
    assert whole.mean() == pytest.approx(255 / 4, rel=0.05)


def test_the_strongest_posterising_leaves_one_bit() -> None:
    """timm asks for 0 bits there, which Pillow refuses."""
    strongest = augment(auto_augment="rand-m10-p1-n30-inc1", scale=(1.0, 1.0))
    for index in range(5):
        assert strongest(IMAGE, 0, index).shape == (32, 32, 3)
