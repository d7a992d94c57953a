"""Checkpoints of SimMIM with relative positions: read, evaluated, written, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.sizes import EncoderSize
from msn.interop import huggingface, official, reading, timm_vit
from msn.methods.simmim import SimMIM, UnitMasking
from msn.models.beit import Beit, BeitForm
from msn.models.mask_token import MaskToken
from msn.models.vit import build_encoder
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.pretraining import pretrain
from tests.support.simmim import simmim_config

SIZE = EncoderSize(4, 16, 2, 2)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FORMS = [
    BeitForm(),
    BeitForm(shared_bias=False, block_bias=True, layer_scale=None),
    BeitForm(block_bias=True, absolute=True, qkv_bias=False),
]


def written(folder: Path, form: BeitForm) -> tuple[Beit, Path]:
    torch.manual_seed(0)
    encoder = Beit(SIZE, form, image_size=16).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.5)
    path = folder / "weights.pth.tar"
    torch.save({"target_encoder": encoder.state_dict()}, path)
    return encoder, path


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_read_computes_the_same(tmp_path: Path, form: BeitForm) -> None:
    encoder, path = written(tmp_path, form)
    weights = reading.read(path)
    assert weights.architecture.form == form
    assert weights.architecture.size == SIZE
    built: Any = weights.build()
    with torch.no_grad():
        assert torch.equal(built.tokens(IMAGES), encoder.tokens(IMAGES))
    official.write(tmp_path / "again.pth.tar", weights)
    again = reading.read(tmp_path / "again.pth.tar")
    assert again.encoder.keys() == weights.encoder.keys()
    assert all(torch.equal(again.encoder[name], weights.encoder[name]) for name in again.encoder)


@pytest.mark.parametrize("target", [huggingface, timm_vit])
def test_formats_without_relative_positions(tmp_path: Path, target: Any) -> None:
    _, path = written(tmp_path, BeitForm())
    with pytest.raises(UserError, match=r"relative position biases.*meta\.positions: learned"):
        target.write(tmp_path / "folder", reading.read(path))


def test_another_size_resizes_the_tables(tmp_path: Path) -> None:
    encoder, _ = written(tmp_path, BeitForm())
    large = torch.nn.functional.interpolate(IMAGES, size=24)
    assert encoder.tokens(large).isfinite().all()
    assert encoder.attention_maps(large).sum(dim=-1).allclose(torch.ones(()))


@pytest.mark.slow
def test_hugging_face_reconstructs_the_same(tmp_path: Path) -> None:
    from transformers import ViTForMaskedImageModeling

    torch.manual_seed(0)
    encoder = build_encoder(SIZE, image_size=16).eval()
    model = SimMIM(encoder, MaskToken(encoder), masking=UnitMasking(4))
    torch.nn.init.normal_(model.token.mask_token)
    path = tmp_path / "weights.pth.tar"
    torch.save({**model.state(), "num_heads": SIZE.num_heads}, path)
    weights = reading.read(path)
    huggingface.write(tmp_path / "folder", weights)
    theirs = ViTForMaskedImageModeling.from_pretrained(tmp_path / "folder").eval()
    units = model.draw_units(IMAGES, 0)
    with torch.no_grad():
        own, _ = model.reconstruct(IMAGES, units)
        other = theirs(IMAGES, bool_masked_pos=units.flatten(1)).reconstruction
    torch.testing.assert_close(other, own, rtol=0, atol=1e-5)
    back = reading.read(tmp_path / "folder")
    assert all(torch.equal(back.encoder[name], weights.encoder[name]) for name in weights.encoder)


@pytest.mark.slow
def test_a_run_goes_on_from_it(tmp_path: Path) -> None:
    first = simmim_config(tmp_path / "first")
    pretrain(first, torch.device("cpu"))
    path = tmp_path / "first/tiny-latest.pth.tar"
    pretrain(simmim_config(tmp_path / "second", meta__init_from=str(path)), torch.device("cpu"))
    assert checkpoint.load(tmp_path / "second/tiny-latest.pth.tar")["step"] == 40
