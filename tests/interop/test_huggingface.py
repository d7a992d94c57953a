"""Folders for transformers, against the models of transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

from msn.config.sizes import ENCODERS
from msn.data.batch import normalize
from msn.data.views import eval_view
from msn.interop import huggingface, reading
from msn.interop.tensorfile import read_file
from msn.interop.weights import Weights
from msn.models.encoder import NORMED
from msn.runtime.errors import UserError
from tests.support.encoders import TINY, images, random_weights, relative, same

pytestmark = pytest.mark.slow


def loaded(model: Any, folder: Path) -> Any:
    """The model of a folder, which it fits with nothing missing and nothing left over."""
    built, report = model.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return built.eval()


def written(folder: Path, weights: Weights) -> Path:
    huggingface.write(folder, weights)
    return folder


@torch.no_grad()
def test_features_of_vit_s_at_full_size(tmp_path: Path) -> None:
    weights = random_weights(ENCODERS["deit_small"], image_size=224, with_head=False)
    model, encoder = loaded(ViTMSNModel, written(tmp_path / "a", weights)), weights.build()
    for size in ((224, 224), (96, 96), (96, 160)):
        views = images(*size, batch=1)
        theirs = model(views, interpolate_pos_encoding=size != (224, 224)).last_hidden_state
        assert relative(encoder.features(views, NORMED), theirs[:, 0]) < 1e-5
        assert relative(encoder.patch_tokens(views), theirs[:, 1:]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["deit_base_p4", "deit_large_p7"])
def test_features_of_the_larger_released_shapes(tmp_path: Path, name: str) -> None:
    """On small images: benchmarks/interop.py has all at 224 px."""
    weights = random_weights(ENCODERS[name], image_size=224, with_head=False)
    model = loaded(ViTMSNModel, written(tmp_path / "a", weights))
    views = images(42, batch=1)
    theirs = model(views, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert relative(weights.build().features(views, NORMED), theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_a_classifier(tmp_path: Path, channels: int) -> None:
    weights = random_weights(classes=7, in_chans=channels)
    assert weights.classifier
    model = loaded(ViTMSNForImageClassification, written(tmp_path / "a", weights))
    views = images(16, channels=channels)
    token = weights.build().features(views, NORMED)
    ours = token @ weights.classifier.weight.T + weights.classifier.bias
    assert model.config.num_labels == 7
    assert relative(ours, model(views).logits) < 1e-5


def test_the_pre_norm_token_is_where_the_card_says(tmp_path: Path) -> None:
    weights, views = random_weights(), images(16)
    model = loaded(ViTMSNModel, written(tmp_path / "a", weights))
    with torch.no_grad():
        states = model(views, output_hidden_states=True).hidden_states
    assert relative(weights.build().features(views), states[-1][:, 0]) < 1e-5
    assert "hidden_states[-1][:, 0]" in (tmp_path / "a" / "README.md").read_text()


def test_auto_classes_in_a_fresh_process(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", random_weights())
    code = (
        "import sys; from transformers import AutoImageProcessor, AutoModel;"
        "model = AutoModel.from_pretrained(sys.argv[1]);"
        "processor = AutoImageProcessor.from_pretrained(sys.argv[1]);"
        "print(type(model).__name__, processor.crop_size['height'], 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
    )
    assert result.stdout == "ViTMSNModel 16 True\n", result.stderr


@pytest.mark.parametrize(("side", "shape"), [(112, (128, 200, 3)), (28, (28, 28, 3))])
def test_the_processor_makes_the_evaluation_view(
    tmp_path: Path, side: int, shape: tuple[int, int, int]
) -> None:
    weights = random_weights(image_size=side)
    processor = AutoImageProcessor.from_pretrained(written(tmp_path / "a", weights))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values) for values in weights.normalization)
    expected = normalize(torch.from_numpy(eval_view(pixels, side)), mean, std)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # crops, so not a pixel is off


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    theirs = ViTMSNForImageClassification(
        ViTMSNConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=16,
            patch_size=4,
            num_labels=5,
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    huggingface.write(tmp_path / "ours", reading.read(tmp_path / "theirs"))
    old, new = (read_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    # transformers 5 writes a classifier's blocks without the prefix that it gives the rest.
    assert same(*({n.removeprefix("vit."): t for n, t in file.items()} for file in (old, new)))


@torch.no_grad()
def test_other_models_with_the_same_encoder(tmp_path: Path) -> None:
    """ViT (DINO's folders are of that type) and ViTMAE, whose default epsilon is smaller."""
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 16,
        "patch_size": 4,
        "initializer_range": 0.5,  # tokens as large as trained ones: epsilon is nothing beside them
    }
    views = images(16)
    torch.manual_seed(0)
    for number, model in enumerate(
        (
            ViTModel(ViTConfig(**sizes)),
            ViTForImageClassification(ViTConfig(**sizes, num_labels=5)),
            ViTMAEForPreTraining(ViTMAEConfig(**sizes, mask_ratio=0.0)),
        )
    ):
        model.eval().save_pretrained(tmp_path / str(number))
        found = reading.read(tmp_path / str(number))
        # ViTMAE shuffles its patches, which the class token does not see.
        theirs = getattr(model, "vit", model)(views).last_hidden_state[:, 0]
        assert relative(found.build().features(views, NORMED), theirs) < 2e-5
        assert (found.classifier is not None) == (number == 1)


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_names_of_both_versions_sharded_or_not(
    tmp_path: Path, names: str, sharded: bool, prefix: str
) -> None:
    weights = random_weights()
    folder = written(tmp_path / "a", weights)
    tensors = read_file(folder / "model.safetensors")
    if names == "new":  # those of the module itself in transformers 5
        tensors = dict(AutoModel.from_pretrained(folder).state_dict())
    tensors = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    if sharded:
        shards = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
        for shard in set(shards.values()):
            save_file({n: t for n, t in tensors.items() if shards[n] == shard}, folder / shard)
        index = json.dumps({"metadata": {}, "weight_map": shards})
        (folder / "model.safetensors.index.json").write_text(index)
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    back = reading.read(folder)
    assert same(back.encoder, weights.encoder)
    assert back.architecture == weights.architecture


def test_the_mask_token_is_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", random_weights())
    tensors = read_file(folder / "model.safetensors")
    tensors["embeddings.mask_token"] = torch.zeros(1, 1, 48)
    save_file(tensors, folder / "model.safetensors")
    assert "embeddings.mask_token" not in reading.read(folder).encoder


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "clip"}, "model_type is 'clip'"),
        ({"model_type": "dinov2"}, r"model_type is 'dinov2', which scales each branch.*LayerScale"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12 is not MSN's"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide"),
    ],
)
def test_folders_of_other_models_are_named(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    config = written(tmp_path / "a", random_weights()) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=problem):
        reading.read(tmp_path / "a")


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", random_weights())
    file = folder / "model.safetensors"
    content, tensors = file.read_bytes(), read_file(file)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated, damaged"):
        reading.read(folder)
    del tensors["encoder.layer.1.attention.attention.key.bias"], tensors["layernorm.weight"]
    save_file(tensors | {"pooler.dense.bias": torch.zeros(1)}, file)
    with pytest.raises(UserError) as error:
        reading.read(folder)
    for part in ("blocks.1.attn.qkv.bias missing", "norm.weight missing", "pooler.dense.bias unk"):
        assert part in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        reading.read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        reading.read(folder)


def test_an_index_cannot_lead_outside(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", random_weights())
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = json.dumps({"weight_map": {"x": "../secret.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="names a file outside the folder"):
        reading.read(folder)


def test_what_vit_msn_has_not_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    stem = random_weights(ENCODERS["vitc_4gf"], image_size=32)
    with pytest.raises(UserError, match="no convolutional stem"):
        huggingface.write(tmp_path / "a", stem)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        huggingface.write(tmp_path / "a", random_weights(TINY))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["precious"]
