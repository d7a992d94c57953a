import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import msn
from msn.data.batch import normalise
from msn.data.views import eval_view
from msn.evaluation.frozen import FrozenEncoder, Taps
from msn.models.encoder import VisionTransformer
from msn.models.masking import kept_patches
from msn.runtime.errors import UserError
from tests.interop.test_pretrained import official_file

IMAGES = [
    np.random.default_rng(i).integers(0, 256, (14 + i, 20, 3), dtype=np.uint8) for i in range(7)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_file(tmp_path_factory.mktemp("weights") / "official.pth.tar")


@pytest.fixture(scope="module")
def encoder(path: Path) -> FrozenEncoder:
    return msn.load_encoder(path)


def expected(vit: VisionTransformer, taps: Taps, keep: Tensor | None = None) -> Tensor:
    """By hand: every token through every block, then the taps."""
    views = torch.stack([torch.from_numpy(eval_view(image, 16)) for image in IMAGES])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tokens = vit.embed(normalise(views, mean, std), keep)
    outputs = []
    for block in vit.blocks:
        tokens = block(tokens)
        outputs.append(vit.norm(tokens) if taps.norm else tokens)
    parts = [tokens[:, 0] for tokens in outputs[-taps.blocks :]]
    if taps.patch_average:
        parts.append(outputs[-1][:, 1:].mean(dim=1))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("patch_average", [False, True])
def test_taps(encoder: FrozenEncoder, blocks: int, norm: bool, patch_average: bool) -> None:
    taps = Taps(blocks, norm, patch_average)
    found = encoder.features(IMAGES, taps, batch_size=3)
    assert found.dtype == torch.float32
    assert found.shape == (7, encoder.width(taps))
    with torch.no_grad():
        torch.testing.assert_close(found, expected(encoder.vit, taps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [Taps(mask=0.5), Taps(blocks=2, norm=True, mask=0.5)])
def test_a_mask_drops_patches_of_each_image_for_itself(encoder: FrozenEncoder, taps: Taps) -> None:
    whole = encoder.features(IMAGES, taps)
    torch.testing.assert_close(encoder.features(IMAGES, taps, batch_size=2), whole)
    views = encoder.views(IMAGES)
    keep = encoder._keep(views, range(7), 0.5)
    assert keep is not None
    assert keep.shape == (7, kept_patches(16, 0.5))
    assert len({tuple(sorted(row)) for row in keep.tolist()}) == 7
    with torch.no_grad():
        torch.testing.assert_close(whole, expected(encoder.vit, taps, keep), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, encoder.features(IMAGES, taps._replace(mask=0.0)))


@pytest.mark.parametrize("mask", [0.0, 0.5])
def test_several_devices_give_the_same(path: Path, encoder: FrozenEncoder, mask: float) -> None:
    two = msn.load_encoder(path, devices=["cpu", "cpu"])
    taps = Taps(mask=mask)
    for images in (IMAGES, IMAGES[:1]):
        torch.testing.assert_close(two.features(images, taps), encoder.features(images, taps))


def test_bfloat16_is_near(path: Path, encoder: FrozenEncoder) -> None:
    found = msn.load_encoder(path, bf16=True).features(IMAGES)
    exact = encoder.features(IMAGES)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.999


def test_views_that_are_made_already_and_no_images(encoder: FrozenEncoder) -> None:
    found = encoder.features(encoder.views(IMAGES))
    torch.testing.assert_close(found, encoder.features(IMAGES))
    assert encoder.features([]).shape == (0, 64)


def test_nothing_is_trained(encoder: FrozenEncoder) -> None:
    assert not encoder.vit.training
    assert not any(parameter.requires_grad for parameter in encoder.vit.parameters())


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (Taps(blocks=4), "--blocks 4: the encoder has 3"),
        (Taps(blocks=0), "--blocks 0"),
        (Taps(mask=0.99), "leaves at least one of the 16 patches"),
        (Taps(mask=-0.1), "--mask -0.1"),
    ],
)
def test_taps_that_there_are_not(encoder: FrozenEncoder, taps: Taps, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder.features(IMAGES, taps)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))]
)
def test_arrays_that_are_no_such_images(encoder: FrozenEncoder, image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be uint8 \(height, width, 3\)"):
        encoder.features([image])


def test_size_and_normalisation_are_those_of_the_training(tmp_path: Path) -> None:
    config = {"data": {"rand_size": 12, "mean": None, "std": None}}
    path = official_file(
        tmp_path / "ours.pth.tar", config=config, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0]
    )
    encoder = msn.load_encoder(path)
    assert (encoder.image_size, encoder.mean, encoder.std) == (12, (0.1, 0.2, 0.3), (1, 2, 3))
    assert msn.load_encoder(path, image_size=20).image_size == 20


def test_importing_msn_loads_no_pytorch() -> None:
    code = "import sys, msn; sys.exit('torch' in sys.modules or 'load_encoder' not in msn.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = msn.nothing
