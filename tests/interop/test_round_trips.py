"""What goes along with the tensors of an encoder, whatever form they are written in."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor

from msn.data.normalization import Normalization
from msn.data.views import eval_short_side
from msn.interop import huggingface, official, reading, timm_vit
from msn.interop.weights import weights_from
from msn.models.head import projection_head
from msn.models.vit import build_encoder
from tests.support.encoders import TINY, random_tensors, random_weights, same

OTHERS = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("form", [official, huggingface, timm_vit])
def test_normalization_and_heads_go_along(tmp_path: Path, form: ModuleType) -> None:
    weights = replace(random_weights(), stated=OTHERS)
    form.write(tmp_path / "a", weights)
    back = reading.read(tmp_path / "a")
    assert back.normalization == OTHERS
    assert back.architecture == weights.architecture
    assert same(back.encoder, weights.encoder)


def test_a_head_without_batch_norm(tmp_path: Path) -> None:
    head = projection_head(TINY.embed_dim, 32, 16, batch_norm=False)
    encoder = build_encoder(TINY, image_size=16, head=head)
    tensors = random_tensors({name: t.shape for name, t in encoder.state_dict().items()})
    encoder.load_state_dict(tensors)
    official.write(tmp_path / "a", weights_from(tensors, path=tmp_path, num_heads=TINY.num_heads))
    views = torch.randn(2, 3, 16, 16)
    assert torch.equal(reading.read(tmp_path / "a").build()(views), encoder.eval()(views))


def test_the_number_of_heads_that_is_given_counts(tmp_path: Path) -> None:
    weights = random_weights()
    state = {"target_encoder": weights.encoder, "num_heads": 4}
    assert official.from_state(state, path=tmp_path).architecture.size.num_heads == 4
    two = official.from_state(state, path=tmp_path, num_heads=2)
    assert two.architecture.size.num_heads == 2


def test_a_config_of_transformers_that_leaves_out_the_default(tmp_path: Path) -> None:
    """12 heads, the default of ViTMSNConfig."""
    huggingface.write(tmp_path / "a", random_weights())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert reading.read(tmp_path / "a").architecture.size.num_heads == 12


@pytest.mark.parametrize(
    ("channels", "filter_"), [(1, "bilinear"), (3, "bilinear"), (3, "bicubic")]
)
def test_the_processor_resizes_as_the_training_and_keeps_channels(
    tmp_path: Path, channels: int, filter_: str
) -> None:
    weights = random_weights(image_size=64, in_chans=channels)
    weights = replace(weights, config={"data": {"interpolation": filter_}})
    huggingface.write(tmp_path / "a", weights)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "a")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, channels), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze())
    found = processor(images=image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    short = eval_short_side(64)
    resized = v2.functional.center_crop(
        v2.functional.resize(image, [short], v2.InterpolationMode(filter_)), [64, 64]
    )
    expected = v2.functional.to_dtype(v2.functional.to_image(resized), torch.float32, scale=True)
    assert found.shape == (channels, 64, 64)
    assert float((found - expected).abs().mean()) < 0.1 / 255
