import numpy as np
import pytest
from sklearn.datasets import load_digits

from msn.data.sources import Source
from msn.data.sources.digits import Digits
from tests.support.sources import opened


def names(source: Source) -> list[str]:
    return [source.read(i).name for i in range(len(source))]


def test_digits_are_all_there_once() -> None:
    train, val = Digits(split="train"), Digits(split="val")
    assert (len(train), len(val)) == (1297, 500)
    originals = load_digits()
    seen = []
    for source in (train, val):
        labels = source.labels()
        assert labels is not None
        for i in range(len(source)):
            image, label, name = source.read(i)
            index = int(name.removeprefix("digits/"))
            expected = np.rint(originals.images[index] * 255 / 16)
            np.testing.assert_array_equal(image.pixels()[..., 0], expected)
            assert image.pixels().dtype == np.uint8
            assert label == labels[i] == originals.target[index]
            seen.append(index)
    assert sorted(seen) == list(range(1797))


def test_digits_are_shuffled_the_same_each_time() -> None:
    first, second = Digits(split="train"), Digits(split="train")
    assert names(first) == names(second)
    # A shuffle, not a cut: the file's order has its writers one after the other.
    held_out = [int(name.removeprefix("digits/")) for name in names(Digits(split="val"))]
    assert abs(np.mean(held_out) - 898) < 4 * 519 / 500**0.5
    labels = Digits(split="val").labels()
    assert labels is not None
    assert np.bincount(labels).min() > 30


def test_digits_statistics_are_those_of_the_training_split() -> None:
    source = Digits(split="train")
    pixels = np.stack([source.read(i).image.pixels() for i in range(len(source))]) / 255
    assert source.mean == pytest.approx((pixels.mean(),), abs=1e-6)
    assert source.std == pytest.approx((pixels.std(),), abs=1e-6)


def test_digits_in_three_channels() -> None:
    gray = opened({"source": "digits"}, "val")
    color = opened({"source": "digits"}, "val", channels=3)
    assert (gray.channels, color.channels) == (1, 3)
    assert color.read(5).image.shape == (8, 8, 3)
    assert (color.read(5).image.pixels() == gray.read(5).image.pixels()).all()
    assert color.mean == gray.mean * 3
    assert color.std == gray.std * 3
