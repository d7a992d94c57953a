import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from msn.data.batch import normalize
from msn.data.image import ArrayImage, BadImage
from msn.data.labeled import LabeledSet
from msn.data.sources import Sample, Source
from msn.data.views import eval_view
from msn.evaluation.features import (
    Features,
    encode_all,
    evaluation_images,
    extract,
    key,
    raw_pixels,
    require_finite,
    write,
)
from msn.evaluation.frozen import FrozenEncoder, load_encoder
from msn.models.encoder import MSN_TAPS, Taps
from msn.runtime.errors import UserError
from tests.interop.test_architecture import official_file
from tests.support.sources import opened


class Stripes:
    """Images of different sizes, each filled with its index; sorted by class, four in each."""

    channels = 3
    label_rule = "stripes"
    mean, std = (0.5,) * 3, (0.25,) * 3
    edition = 1

    def __init__(self, length: int, *, labeled: bool = True) -> None:
        self.length, self.labeled = length, labeled

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        image = np.full((10 + index, 12, 3), index, dtype=np.uint8)
        return Sample(ArrayImage(image, 3), index // 4 if self.labeled else None, self.name(index))

    def name(self, index: int) -> str:
        return f"stripe {index}"

    def stamp(self, index: int) -> str:
        return f"stripe {index}, {self.edition}"

    def labels(self) -> np.ndarray | None:
        return np.arange(self.length) // 4 if self.labeled else None

    def classes(self) -> list[str] | None:
        return None


def chosen(source: Source, indices: np.ndarray | None = None) -> LabeledSet:
    labels = source.labels()
    assert labels is not None
    return LabeledSet(source, labels, np.arange(len(labels)) if indices is None else indices)


NORMALISE = partial(normalize, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))


def encode(batch: Tensor) -> Tensor:
    """Depends on where each value lies, so that a wrong layout shows."""
    weight = torch.linspace(-1, 1, batch[0].numel() * 5).view(-1, 5)
    return batch.flatten(1) @ weight


def test_evaluation_images_are_the_evaluation_views_in_order() -> None:
    source = opened({"source": "digits"}, "val")
    found = evaluation_images(chosen(source), image_size=16)
    by_worker = evaluation_images(chosen(source), image_size=16, num_workers=1)
    assert torch.equal(by_worker.images, found.images)
    assert found.images.shape == (500, 16, 16, 1)
    assert found.images.dtype == torch.uint8
    assert found.labels.dtype == torch.int64
    assert np.array_equal(found.images[7].numpy(), eval_view(source.read(7).image.pixels(), 16))
    assert found.labels[7] == source.read(7).label


def test_only_the_chosen_images_are_seen() -> None:
    found = evaluation_images(chosen(Stripes(12), np.array([0, 2, 9])), image_size=8)
    assert found.images[:, 0, 0, 0].tolist() == [0, 2, 9]
    assert found.labels.tolist() == [0, 0, 2]


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_features_are_those_of_all_images_at_once(batch_size: int) -> None:
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    )
    expected = encode(((images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2))
    found = encode_all(encode, images, normalize=NORMALISE, batch_size=batch_size)
    torch.testing.assert_close(found, expected)


def test_features_are_float32_and_carry_no_graph() -> None:
    layer = torch.nn.Linear(8 * 8 * 3, 4)
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    found = encode_all(lambda x: layer(x.flatten(1)).bfloat16(), images, normalize=NORMALISE)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_raw_pixels_are_flat_shares_of_white() -> None:
    images = torch.tensor([[[[0], [51]], [[255], [102]]]], dtype=torch.uint8)
    torch.testing.assert_close(raw_pixels(images), torch.tensor([[0.0, 0.2, 1.0, 0.4]]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return load_encoder(official_file(tmp_path_factory.mktemp("weights") / "w.pth.tar"))


def in_memory(encoder: FrozenEncoder, source: Stripes, taps: Taps = MSN_TAPS) -> Tensor:
    return encoder.features([source.read(i).image.pixels() for i in range(len(source))], taps)


@pytest.mark.parametrize("taps", [Taps(), Taps(blocks=2, mask=0.5)])
@pytest.mark.parametrize(("batch_size", "shard", "num_workers"), [(3, 5, 0), (256, 4, 2)])
@pytest.mark.slow
def test_features_of_a_source(
    encoder: FrozenEncoder,
    tmp_path: Path,
    taps: Taps,
    batch_size: int,
    shard: int,
    num_workers: int,
) -> None:
    source = Stripes(11)
    for cache in (None, tmp_path, tmp_path):
        found = extract(
            encoder,
            source,
            taps=taps,
            batch_size=batch_size,
            shard=shard,
            num_workers=num_workers,
            cache=cache,
        )
        torch.testing.assert_close(found.features, in_memory(encoder, source, taps))
        assert found.labels is not None
        assert found.labels.tolist() == [i // 4 for i in range(11)]
        assert found.names == [f"stripe {i}" for i in range(11)]


def test_features_of_some_images(encoder: FrozenEncoder) -> None:
    found = extract(encoder, Stripes(11), indices=np.array([7, 2]), taps=Taps(mask=0.5))
    whole = in_memory(encoder, Stripes(11), Taps(mask=0.5))
    torch.testing.assert_close(found.features, whole[[7, 2]])
    assert found.names == ["stripe 7", "stripe 2"]
    assert extract(encoder, Stripes(4, labeled=False)).labels is None


class Fragile(Stripes):
    """Stripes of which one cannot be read, and that remember what was."""

    def __init__(self, length: int, broken: int | None = None) -> None:
        super().__init__(length)
        self.broken = broken
        self.seen: list[int] = []

    def read(self, index: int) -> Sample:
        self.seen.append(index)
        if index == self.broken:
            raise BadImage(f"stripe {index}", "torn")
        return super().read(index)


def test_an_interrupted_extraction_goes_on_where_it_was(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"stripe 8 \(torn\); replace or remove it"):
        extract(encoder, Fragile(11, broken=8), cache=tmp_path, shard=3)
    mended = Fragile(11)
    found = extract(encoder, mended, cache=tmp_path, shard=3)
    assert mended.seen == [6, 7, 8, 9, 10]
    torch.testing.assert_close(found.features, in_memory(encoder, Stripes(11)))


def test_a_damaged_shard_is_made_again(encoder: FrozenEncoder, tmp_path: Path) -> None:
    extract(encoder, Stripes(11), cache=tmp_path, shard=4)
    first, second, _ = sorted(tmp_path.rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(b"")
    found = extract(encoder, Stripes(11), cache=tmp_path, shard=4)
    torch.testing.assert_close(found.features, in_memory(encoder, Stripes(11)))


def test_whatever_changes_features_changes_their_key(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    path = official_file(tmp_path / "other.pth.tar", seed=1)
    source, indices = Stripes(6), np.arange(6)
    reference = key(encoder, source, indices)
    assert key(encoder, Stripes(6), np.arange(6)) == reference
    touched = Stripes(6)
    touched.edition = 2
    normalized = load_encoder(path)
    normalized.mean = (0.1, 0.2, 0.3)
    weights = load_encoder(path)
    keys = [
        reference,
        *(key(encoder, source, indices, Taps(*taps)) for taps in ((2,), (1, True))),
        *(key(encoder, source, indices, Taps(1, False, *taps)) for taps in ((True,), (False, 0.5))),
        key(encoder, source, indices[::-1]),
        key(encoder, source, indices[:5]),
        key(encoder, touched, indices),
        key(weights, source, indices),
        key(normalized, source, indices),
        key(load_encoder(path, image_size=20), source, indices),
        key(load_encoder(path, bf16=True), source, indices),
    ]
    assert len({json.dumps(each, sort_keys=True) for each in keys}) == len(keys)


def test_a_file_that_changes_changes_the_key(encoder: FrozenEncoder, tmp_path: Path) -> None:
    image = tmp_path / "train" / "a" / "1.png"
    image.parent.mkdir(parents=True)
    cv2.imwrite(str(image), np.zeros((20, 20, 3), np.uint8))

    def now() -> dict[str, Any]:
        source = opened({"root_path": str(tmp_path)})
        return key(encoder, source, np.arange(1))

    before = now()
    assert now() == before
    cv2.imwrite(str(image), np.full((20, 20, 3), 255, np.uint8))
    assert now() != before


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_written_features_read_back(tmp_path: Path, suffix: str, labeled: bool) -> None:
    labels = torch.tensor([3, 1]) if labeled else None
    found = Features(torch.randn(2, 5), labels, ["a/1.png", "b/\u00e9 2.png"], np.arange(2))
    path = tmp_path / "new" / f"f{suffix}"
    write(path, found)
    if suffix == ".npz":
        arrays = dict(np.load(path, allow_pickle=False))
        names = arrays["names"].tolist()
    else:
        arrays = load_file(path)
        names = bytes(arrays["names"]).decode().split("\n")
    assert names == found.names
    assert np.array_equal(arrays["features"], found.features.numpy())
    assert arrays["labels"].tolist() == [3, 1] if labeled else "labels" not in arrays
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_features_that_cannot_be_written(tmp_path: Path) -> None:
    found = Features(torch.randn(2, 5), None, ["a", "b"], np.arange(2))
    with pytest.raises(UserError, match=r"must end in \.safetensors or \.npz"):
        write(tmp_path / "f.csv", found)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "f.npz", found)


def test_a_feature_that_is_not_finite_is_named(encoder: FrozenEncoder, tmp_path: Path) -> None:
    features = torch.ones(4, 3)
    require_finite(features)
    features[2, 1] = torch.nan
    with pytest.raises(UserError, match=r"image 2: its features are not finite \(1 of 4"):
        require_finite(features)
    path = official_file(tmp_path / "w.pth.tar")
    damaged = load_encoder(path)
    next(damaged.model.parameters()).data[...] = torch.inf
    with pytest.raises(UserError, match="stripe 0: its features are not finite"):
        extract(damaged, Stripes(3), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
