"""Checkpoints of SimMIM with relative positions: read, evaluated, written, refused."""

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.sizes import ENCODERS, EncoderSize
from msn.interop import huggingface, official, pixels, reading, timm_vit
from msn.methods.simmim import SimMIM, UnitMasking
from msn.models.beit import Beit, BeitForm
from msn.models.mask_token import MaskToken
from msn.models.vit import build_encoder
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.pretraining import pretrain
from tests.golden import record
from tests.golden.simmim_models import golden, simmim_of, units_of
from tests.support.simmim import simmim_config

SIZE = EncoderSize(4, 16, 2, 2)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RECORDED = ("vit_shared", "vit_perblock", "vit_abs")
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


def yacs_class() -> type:
    """A stand-in of yacs for writing: reading must not look it up."""
    return type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})


@pytest.mark.parametrize("name", RECORDED)
def test_files_of_the_official_trainer_go_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Their config object becomes plain values; names and bits come out as they went in."""
    data, path = golden(f"{name}.npz"), tmp_path / "ckpt_epoch_7.pth"
    given, node = data.tensors("sd."), yacs_class()
    module = types.ModuleType("yacs.config")
    module.CfgNode = node  # type: ignore[attr-defined]
    with monkeypatch.context() as known:
        known.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        known.setitem(sys.modules, "yacs.config", module)
        config = node(MODEL=node(TYPE="vit"), A=[1])
        config.__dict__["__immutable__"] = True
        torch.save({"model": given, "config": config, "optimizer": {}, "epoch": 7}, path)
    assert type(checkpoint.load(path, None)["config"]["MODEL"]) is OrderedDict
    heads = data.meta["config"]["num_heads"]
    weights = reading.read(path, num_heads=heads)

    model = simmim_of(data, torch.float32)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    start = reading.read_start(path, num_heads=heads, exact=True)
    assert model.load_weights(checkpoint.Found(path, start)) == []
    unit = data.meta["config"]["mask_patch_size"] // data.meta["config"]["patch_size"]
    with torch.no_grad():
        rebuilt, _ = model.reconstruct(data.tensor("x"), units_of(data.tensor("mask"), unit))
    torch.testing.assert_close(rebuilt, data.tensor("rec"), rtol=0, atol=1e-5)

    official.write(tmp_path / "again.pth", weights)
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert again.keys() == given.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in given.items())
    back = reading.read(tmp_path / "again.pth")
    assert (back.architecture, back.pixels is None) == (weights.architecture, False)


def test_the_names_of_a_released_file() -> None:
    """Those of the official constructor of ViT-B/16."""
    listed = record.golden_json("models.json", record.SIMMIM)["pretrain_vit_base"]["state_dict"]
    with torch.device("meta"):
        encoder = Beit(ENCODERS["deit_base"], BeitForm(), image_size=224)
        state = SimMIM(encoder, MaskToken(encoder)).state()
    beside = pixels.Pixels({key: state[key] for key in pixels.KEYS})
    named = pixels.to_official(state["target_encoder"], beside, 14)
    assert {name: list(tensor.shape) for name, tensor in named.items()} == {
        name: shape for name, (_, shape) in listed.items()
    }


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
    assert back.pixels
    assert torch.equal(back.pixels.parts["mask"]["mask_token"], model.token.mask_token)
    assert torch.equal(
        back.pixels.parts["decoder"]["0.weight"], model.decoder[0].get_parameter("weight")
    )


@pytest.mark.slow
def test_a_run_goes_on_from_it(tmp_path: Path) -> None:
    first = simmim_config(tmp_path / "first")
    pretrain(first, torch.device("cpu"))
    path = tmp_path / "first/tiny-latest.pth.tar"
    pretrain(simmim_config(tmp_path / "second", meta__init_from=str(path)), torch.device("cpu"))
    assert checkpoint.load(tmp_path / "second/tiny-latest.pth.tar")["step"] == 40
