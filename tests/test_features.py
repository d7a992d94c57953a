from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from msn.data.batch import normalise
from msn.data.image import ArrayImage
from msn.data.sources import Sample, open_source
from msn.data.views import eval_view
from msn.errors import UserError
from msn.features import encode_all, evaluation_images, extract, raw_pixels


class Stripes:
    """Images of different sizes, each filled with its index; sorted by class, four in each."""

    channels = 3
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, length: int, *, labelled: bool = True) -> None:
        self.length, self.labelled = length, labelled

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        image = np.full((10 + index, 12, 3), index, dtype=np.uint8)
        return Sample(ArrayImage(image, 3), index // 4 if self.labelled else None, self.name(index))

    def name(self, index: int) -> str:
        return f"stripe {index}"

    def labels(self) -> np.ndarray | None:
        return np.arange(self.length) // 4 if self.labelled else None


NORMALISE = partial(normalise, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))


def encode(batch: Tensor) -> Tensor:
    """Depends on where each value lies, so that a wrong layout shows."""
    weight = torch.linspace(-1, 1, batch[0].numel() * 5).view(-1, 5)
    return batch.flatten(1) @ weight


def test_evaluation_images_are_the_evaluation_views_in_order() -> None:
    source = open_source(source="digits", root_path=None, image_folder="", split="val")
    found = evaluation_images(source, image_size=16)
    assert found.images.shape == (500, 16, 16, 1)
    assert found.images.dtype == torch.uint8
    assert found.labels.dtype == torch.int64
    assert np.array_equal(found.images[7].numpy(), eval_view(source.read(7).image.pixels(), 16))
    assert found.labels[7] == source.read(7).label


@pytest.mark.parametrize(
    ("limit", "indices"),
    [(None, range(12)), (99, range(12)), (3, [0, 4, 8]), (5, [0, 2, 4, 7, 9]), (1, [0])],
)
def test_a_limit_takes_an_evenly_spaced_part(limit: int | None, indices: list[int]) -> None:
    found = evaluation_images(Stripes(12), image_size=8, max_images=limit)
    assert found.images[:, 0, 0, 0].tolist() == list(indices)
    assert found.labels.tolist() == [index // 4 for index in indices]


def test_unlabelled_images_are_refused() -> None:
    source = Stripes(4, labelled=False)
    with pytest.raises(UserError, match=r"labelled.*logging\.probe\.root_path"):
        evaluation_images(source, image_size=8)
    with pytest.raises(UserError, match="labelled"):
        extract(encode, source, image_size=8, normalise=NORMALISE)


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_features_are_those_of_all_images_at_once(batch_size: int) -> None:
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    )
    expected = encode(((images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2))
    found = encode_all(encode, images, normalise=NORMALISE, batch_size=batch_size)
    torch.testing.assert_close(found, expected)


def test_features_are_float32_and_carry_no_graph() -> None:
    layer = torch.nn.Linear(8 * 8 * 3, 4)
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    found = encode_all(lambda x: layer(x.flatten(1)).bfloat16(), images, normalise=NORMALISE)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_extract_is_reading_then_encoding() -> None:
    source = Stripes(11)
    images, labels = evaluation_images(source, image_size=8, max_images=7)
    found = extract(encode, source, image_size=8, normalise=NORMALISE, batch_size=3, max_images=7)
    torch.testing.assert_close(found.features, encode_all(encode, images, normalise=NORMALISE))
    assert torch.equal(found.labels, labels)


def test_raw_pixels_are_flat_shares_of_white() -> None:
    images = torch.tensor([[[[0], [51]], [[255], [102]]]], dtype=torch.uint8)
    torch.testing.assert_close(raw_pixels(images), torch.tensor([[0.0, 0.2, 1.0, 0.4]]))
