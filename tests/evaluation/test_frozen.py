import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import msn
from msn.data.batch import normalize
from msn.data.views import eval_view
from msn.evaluation.frozen import FrozenEncoder, frozen
from msn.interop import reading
from msn.models.encoder import Encoder, Taps
from msn.models.masking import kept_patches
from msn.models.vit import VisionTransformer
from msn.runtime.errors import UserError
from tests.interop.test_architecture import official_file

IMAGES = [
    np.random.default_rng(i).integers(0, 256, (14 + i, 20, 3), dtype=np.uint8) for i in range(7)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_file(tmp_path_factory.mktemp("weights") / "official.pth.tar")


@pytest.fixture(scope="module")
def encoder(path: Path) -> FrozenEncoder:
    return msn.load_encoder(path)


def expected(vit: Encoder, taps: Taps, keep: Tensor | None = None) -> Tensor:
    """By hand: every token through every block, then the taps."""
    views = torch.stack([torch.from_numpy(eval_view(image, 16)) for image in IMAGES])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert isinstance(vit, VisionTransformer)
    tokens = vit.embed(normalize(views, mean, std), keep)
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
        torch.testing.assert_close(found, expected(encoder.model, taps), rtol=1e-4, atol=1e-5)


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
        torch.testing.assert_close(whole, expected(encoder.model, taps, keep), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, encoder.features(IMAGES, taps._replace(mask=0.0)))


def test_images_are_resized_as_in_the_training(path: Path, encoder: FrozenEncoder) -> None:
    weights = reading.read(path)
    state = replace(weights, config={"data": {"interpolation": "bicubic", "image_size": 16}})
    found = frozen(state).views(IMAGES).numpy()
    np.testing.assert_array_equal(found, [eval_view(image, 16, "bicubic") for image in IMAGES])
    assert (found != encoder.views(IMAGES).numpy()).any()


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


def test_images_in_every_form_that_people_have(encoder: FrozenEncoder) -> None:
    """One row for each image, and the same numbers whatever it comes as."""
    rgb = IMAGES[0]
    expected = encoder.features([rgb])
    pillow = PIL.Image.fromarray(rgb)
    forms: list[Any] = [rgb, pillow, [pillow], np.moveaxis(rgb, 2, 0), rgb[None], np.array([rgb])]
    forms += [pillow.convert("RGBA"), (rgb,), rgb[:, ::-1][:, ::-1]]
    for form in forms:
        torch.testing.assert_close(encoder.features(form), expected)
    mixed = encoder.features([PIL.Image.fromarray(IMAGES[1]), rgb, IMAGES[2]])
    torch.testing.assert_close(mixed, encoder.features([IMAGES[1], rgb, IMAGES[2]]))
    gray = encoder.features(pillow.convert("L"))
    assert gray.shape == (1, 64)
    assert not torch.allclose(gray, expected)
    nothing: list[Any] = [[], np.empty((0,)), np.empty((0, 9, 9, 3), np.uint8), torch.empty(0)]
    for empty in (*nothing, torch.empty(0, 3, 16, 16)):
        assert encoder.features(empty).shape == (0, 64)


def test_views_in_every_form_that_people_have(encoder: FrozenEncoder) -> None:
    views = encoder.views(IMAGES)
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    normalized = normalize(views, mean, std)
    for taps in (Taps(), Taps(mask=0.5)):
        expected = encoder.features(IMAGES, taps)
        forms: list[Any] = [
            views,
            views.movedim(3, 1),
            list(views),
            normalized,
            normalized.double(),
            normalized.clone().requires_grad_(),
        ]
        for form in forms:
            found = encoder.features(form, taps, batch_size=3)
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(encoder.features(views[0]), encoder.features(views[:1]))
    torch.testing.assert_close(encoder.features(normalized[0]), encoder.features(views[:1]))
    wide = torch.randn(2, 3, 8, 20)  # of any size that holds a patch
    assert encoder.features(wide, Taps(mask=0.5)).shape == (2, 64)


def test_what_are_no_images_is_said(encoder: FrozenEncoder) -> None:
    rand = torch.rand(2, 3, 16, 16) * 0.95
    cases: list[tuple[Any, str]] = [
        (rand, r"floats of \S+ to 0.9\S* are not normalized; give uint8, or normalize them first"),
        (rand * 255, "floats of .* are no normalized pixels, of which white is 2.64; give uint8"),
        (rand.half(), "are not normalized"),
        (torch.randn(2, 3, 16, 16) / 0, "floats that are not finite"),
        (rand.movedim(1, 3), r"a tensor of shape \(2, 16, 16, 3\) and type torch.float32: must be"),
        (torch.randn(2, 1, 16, 16), r"shape \(2, 1, 16, 16\)"),
        (torch.zeros(2, 16, 16, 1, dtype=torch.uint8), r"shape \(2, 16, 16, 1\) .* must be uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.bool), "torch.bool: must be uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "torch.int64: must be uint8"),
        (torch.zeros(16, 16, dtype=torch.uint8), r"shape \(16, 16\)"),
        (torch.zeros(2, 3, 3, 20, dtype=torch.uint8), "3 x 20 px: smaller than the encoder's patc"),
        (torch.randn(2, 3, 16, 16).to_sparse(), "sparse, nested or without values: give a dense"),
        (torch.empty(2, 3, 16, 16, device="meta"), "without values: give a dense one"),
        (np.zeros((2, 16, 16, 3), np.float32), r"type float32: must be uint8 \(height, width, 3\)"),
        (np.zeros((16, 16, 3), bool), "type bool: must be uint8"),
        (np.zeros((16, 16, 1), np.uint8), r"shape \(16, 16, 1\) .* must be uint8"),
        (np.zeros((0, 16, 3), np.uint8), r"shape \(0, 16, 3\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], "tensors of several shapes or types"),
        ([IMAGES[0], "a.jpg"], "an image of type str"),
        ("a.jpg", "images: str; must be images"),
        ({"a": 1}, "images: dict; must be images"),
        (None, "images: NoneType; must be images"),
    ]
    for given, message in cases:
        with pytest.raises(UserError, match=message) as error:
            encoder.features(given)
        assert "\n" not in str(error.value)
    for size in (0, 1.5, "4"):
        with pytest.raises(UserError, match=f"batch_size {size!r}: must be a whole number from 1"):
            encoder.features(IMAGES, batch_size=size)  # type: ignore[arg-type]
    plain = FrozenEncoder(encoder.model, image_size=16, mean=[0] * 3, std=[1] * 3, digest="")
    assert plain.features(rand).shape == (2, 64)  # normalized with these is what 0 to 1 is
    with pytest.raises(UserError, match="3 x 3 px: smaller than the encoder's patches"):
        FrozenEncoder(encoder.model, image_size=3, mean=[0] * 3, std=[1] * 3, digest="")


def test_nothing_is_trained(encoder: FrozenEncoder) -> None:
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


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


def test_size_and_normalization_are_those_of_the_training(tmp_path: Path) -> None:
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
