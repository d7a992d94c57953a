"""Folders for timm, against timm's own models."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from msn.config.sizes import ENCODERS, EncoderSize
from msn.data.batch import normalize
from msn.data.views import eval_view
from msn.interop import reading, timm_vit
from msn.interop.tensorfile import read_file
from msn.models.encoder import NORMED
from msn.runtime.errors import UserError
from tests.support.encoders import TINY, images, random_weights, relative, same


@torch.no_grad()
@pytest.mark.slow
def test_features_of_vit_s_as_a_named_model(tmp_path: Path) -> None:
    """`checkpoint_path` loads strictly: with nothing missing and nothing left over."""
    weights = random_weights(ENCODERS["deit_small"], image_size=224, with_head=False)
    timm_vit.write(tmp_path / "a", weights)
    path = str(tmp_path / "a" / "model.safetensors")
    model = timm.create_model("vit_small_patch16_224", checkpoint_path=path, num_classes=0).eval()
    views = images(224)
    assert relative(weights.build().features(views, NORMED), model(views)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "size",
    [
        TINY,
        EncoderSize(7, 192, 2, 3),
        ENCODERS["deit_large_p7"]._replace(depth=2),
        ENCODERS["deit_base_p4"]._replace(depth=2),
        ENCODERS["deit_base"]._replace(depth=2),
    ],
)
@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.slow
def test_any_size_as_a_folder(tmp_path: Path, size: EncoderSize, classes: int) -> None:
    weights = random_weights(size, image_size=28, in_chans=1, classes=classes, with_head=False)
    timm_vit.write(tmp_path / "a", weights)
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    assert model.pretrained_cfg["tag"] == "msn"
    assert tuple(model.pretrained_cfg["mean"]) == weights.normalization.mean
    side = weights.architecture.image_size
    assert tuple(model.pretrained_cfg["input_size"]) == (1, side, side)
    views = images(side, channels=1)
    ours = weights.build().features(views, NORMED)
    if weights.classifier:
        ours = ours @ weights.classifier.weight.T + weights.classifier.bias
    assert relative(ours, model(views)) < 1e-5


@pytest.mark.parametrize(("side", "shape"), [(112, (128, 200, 3)), (28, (28, 28, 3))])
def test_its_transform_makes_the_evaluation_view(
    tmp_path: Path, side: int, shape: tuple[int, int, int]
) -> None:
    weights = random_weights(image_size=side, with_head=False)
    timm_vit.write(tmp_path / "a", weights)
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (torch.tensor(values) for values in weights.normalization)
    expected = normalize(torch.from_numpy(eval_view(pixels, side)), mean, std)
    torch.testing.assert_close(transform(Image.fromarray(pixels)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_round_trip_keeps_every_bit(tmp_path: Path, kind: str) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    weights = reading.read(tmp_path / "theirs.safetensors")
    if kind == "folder":
        timm_vit.write(tmp_path / "between", weights)
        weights = reading.read(tmp_path / "between")
    timm_vit.write(tmp_path / "ours", weights)
    assert same(read_file(tmp_path / "ours" / "model.safetensors"), dict(theirs.state_dict()))


def test_a_torch_file_of_timm(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    weights = reading.read(tmp_path / "theirs.pth")
    assert weights.architecture.size == EncoderSize(16, 192, 2, 3)
    assert same(weights.encoder, dict(theirs.state_dict()))


def test_vits_with_other_parts_are_refused(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, init_values=1e-5)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma unknown"):
        reading.read(tmp_path / "theirs.safetensors")
    stem = random_weights(ENCODERS["vitc_4gf"], image_size=32)
    with pytest.raises(UserError, match="no convolutional stem"):
        timm_vit.write(tmp_path / "a", stem)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnext_atto", "not the weights of a Vision Transformer"),
        ("resnet10t", r"conv1.weight is missing.*plain ResNet"),
        ("seresnet18", "not the tensors of a ResNet"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0).state_dict()
    tensors = {key: torch.zeros(tensor.shape) for key, tensor in theirs.items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=said):
        reading.read(tmp_path / "theirs.safetensors")


def test_paths_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder for transformers or timm"):
        reading.read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        reading.read(tmp_path / "none.safetensors")
