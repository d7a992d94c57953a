"""Files of MAE: the official ones and folders for transformers, with decoder and without."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

import msn
from msn.cli.main import main
from msn.config.kinds import MAEConfig
from msn.interop import huggingface, official, reading
from msn.interop.tensorfile import read_file
from msn.methods.mae import MAE, masked_error
from msn.models.mae_decoder import Decoder
from msn.models.masking import keep_lowest
from msn.models.vit import build_encoder
from msn.runtime import integrity
from msn.runtime.checkpoint import Found, load
from msn.runtime.errors import UserError
from tests.golden.mae_models import golden, mae_of
from tests.golden.record import MAE as RECORDED
from tests.golden.record import golden_json
from tests.methods.test_mae import mae_config
from tests.support.encoders import TINY, random_tensors, same

pytestmark = pytest.mark.slow

RATIO = 0.75
RELEASED = {
    name: record
    for name, record in golden_json("models.json", RECORDED).items()
    if name.startswith("mae_")
}
SETTINGS = {"mask_ratio": RATIO, "norm_pix_loss": True, "decoder_heads": 4}


def random_mae(norm_pix_loss: bool = True) -> MAE:
    """A model whose tensors are all random but for the fixed positions."""
    encoder = build_encoder(TINY, image_size=16, positions="sincos")
    decoder = Decoder(TINY.embed_dim, encoder.grid_size, 48, embed_dim=32, depth=2, num_heads=4)
    for half in (encoder, decoder):
        shapes = {name: parameter.shape for name, parameter in half.named_parameters()}
        positions = half.get_parameter("pos_embed").detach()
        half.load_state_dict(random_tensors(shapes) | {"pos_embed": positions})
    return MAE(encoder, decoder, norm_pix_loss=norm_pix_loss).eval()


def written(folder: Path, model: MAE) -> Path:
    """The checkpoint of a run, as far as weights go."""
    criterion = {**SETTINGS, "norm_pix_loss": model.norm_pix_loss}
    config = {"meta": {"method": "mae"}, "criterion": criterion}
    path = folder / "run.pth.tar"
    torch.save({**model.state(), "num_heads": TINY.num_heads, "config": config}, path)
    return path


def started(path: Path) -> MAE:
    """A fresh model that warm-starts from a file."""
    fresh = random_mae()
    for part in (fresh.backbone, fresh.decoder):
        nn.init.zeros_(part.get_parameter("norm.weight"))
    fresh.load_weights(Found(path, reading.read_start(path, num_heads=4, exact=False)))
    return fresh


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


# --- official files


def test_a_file_of_the_official_trainer_computes_what_was_recorded(tmp_path: Path) -> None:
    """With options in it, read without running code; the loss is the official one."""
    data = golden("forward.npz")
    config = data.meta["config"]
    options = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5, output_dir=Path("/x"))
    path, given = tmp_path / "checkpoint-3.pth", data.tensors("sd.")
    hint = {"decoder_heads": config["dec_heads"]}
    torch.save({"model": given, "args": options, "epoch": 3, "criterion": hint}, path)
    weights = reading.read(path, num_heads=config["heads"])
    assert weights.pixels
    assert weights.pixels.mae
    said = weights.pixels.mae
    assert (said.norm_pix_loss, said.mask_ratio) == (False, 0.5)
    assert (said.decoder_dim, said.decoder_depth) == (config["dec_dim"], config["dec_depth"])
    model = mae_of(data, torch.float32, norm_pix_loss=True)
    for parameter in (*model.backbone.parameters(), *model.decoder.parameters()):
        nn.init.zeros_(parameter)
    model.load_weights(Found(path, reading.read_start(path, num_heads=4, exact=False)))
    images, noise = data.tensor("imgs"), data.tensor("noise")
    loss, _ = model.loss_of(images, keep_lowest(noise, RATIO))
    assert float(loss.detach()) == pytest.approx(float(data["loss.r0.75.npl1"]), abs=2e-6)
    official.write(tmp_path / "again.pth", weights)
    assert same(torch.load(tmp_path / "again.pth", weights_only=True)["model"], given)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("full", [False, True])
def test_released_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, full: bool
) -> None:
    """Sizes and heads are known, ViT-H/14's 16 among them, and the names come out as released."""
    monkeypatch.setattr(integrity, "MOST_REPEATED", 2**40)  # so that no file need be written out
    record = RELEASED[name]
    listed = dict(record["params"])
    for key, shape in record["params"].items():  # the record has the first block of large models
        if match := re.fullmatch(r"((?:decoder_)?blocks)\.0\.(.+)", key):
            depth = record["config"]["dec_depth" if key.startswith("decoder_") else "depth"]
            listed |= {f"{match[1]}.{i}.{match[2]}": shape for i in range(depth)}
    assert len(listed) == record["n_keys"]
    tensors = {
        key: torch.zeros(1).expand(shape)
        for key, shape in listed.items()
        if full or not key.startswith(("decoder_", "mask_token"))
    }
    path = tmp_path / "mae.pth"
    torch.save({"model": tensors}, path)
    weights = reading.read(path)
    assert weights.architecture.size.num_heads == record["config"]["heads"]
    assert weights.architecture.image_size == 224
    assert (weights.pixels is not None) is full
    if weights.pixels and weights.pixels.mae:
        official.write(tmp_path / "again.pth", weights)
        again = torch.load(tmp_path / "again.pth", weights_only=True)
        assert {key: list(t.shape) for key, t in again["model"].items()} == listed
        assert weights.pixels.mae.decoder_heads == record["config"]["dec_heads"]


def test_what_is_exported_starts_a_run_of_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_mae(norm_pix_loss=False)
    run, out = written(tmp_path, model), tmp_path / "official.pth"
    assert main(["export", str(run), str(out), "--to", "official"]) == 0
    state = torch.load(out, weights_only=True)
    assert state["criterion"] == {**SETTINGS, "norm_pix_loss": False}
    assert state["model"].keys() >= {
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.1.norm1.bias",
    }
    assert main(["import", str(out)]) == 0
    assert "MAE's decoder (width 32, depth 2)" in capsys.readouterr().out
    back = started(out)
    assert same(whole(back), whole(model))
    encoders = [msn.load_encoder(path) for path in (run, out)]
    assert encoders[0].digest == encoders[1].digest


def test_an_encoder_alone_leaves_the_decoder_as_drawn(tmp_path: Path) -> None:
    model, fresh, path = random_mae(), random_mae(), tmp_path / "encoder.pth"
    torch.save({"model": model.backbone.state_dict()}, path)
    nn.init.zeros_(fresh.backbone.norm.weight)
    nn.init.ones_(fresh.decoder.norm.weight)
    state = reading.read_start(path, num_heads=4, exact=False)
    assert fresh.load_weights(Found(path, state)) == ["decoder"]
    assert same(whole(fresh.backbone), whole(model.backbone))
    assert torch.equal(fresh.decoder.norm.weight, torch.ones(32))


def test_parts_of_another_method_are_left(tmp_path: Path) -> None:
    """SimMIM's decoder is under the same key, and MSN's head is no part of an encoder."""
    model, path = random_mae(), tmp_path / "other.pth.tar"
    encoder = {**model.backbone.state_dict(), "fc.weight": torch.zeros(1)}
    simmim = {"0.weight": torch.zeros(48, 48, 1, 1), "0.bias": torch.zeros(48)}
    found = Found(path, {"target_encoder": encoder, "decoder": simmim})
    assert model.load_weights(found) == ["decoder"]


def test_a_decoder_that_cannot_be_used(tmp_path: Path) -> None:
    model, path = random_mae(), tmp_path / "a.pth"
    tensors = reading.read(written(tmp_path, model))
    official.write(path, tensors)
    state = load(path, None)
    for change, problem in (
        ({"decoder_norm.bias": torch.full((32,), torch.nan)}, "norm.bias has values that are not"),
        ({"decoder_pred.bias": torch.zeros(48, dtype=torch.int64)}, "must be of floating-point"),
    ):
        torch.save({**state, "model": state["model"] | change}, path)
        with pytest.raises(UserError, match=problem):
            reading.read(path)
    torch.save({**state, "criterion": {"decoder_heads": "many"}}, path)
    with pytest.raises(
        UserError, match="decoder_heads of its decoder: Input should be a valid int"
    ):
        reading.read(path)
    other = {name: t for name, t in state["model"].items() if name != "decoder_norm.bias"}
    torch.save({**state, "model": other}, path)
    assert reading.read(path).pixels is None  # the encoder can be used all the same


# --- transformers


READ = """
import sys, torch
from transformers import ViTMAEForPreTraining, ViTMAEModel
folder, given, out = sys.argv[1:]
images, noise = torch.load(given)
with torch.no_grad():
    whole, report = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    found = whole.eval()(images, noise=noise)
    encoder, report = ViTMAEModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    tokens = encoder.eval()(images, noise=noise).last_hidden_state
assert "msn" not in sys.modules
torch.save((found.loss, found.logits, tokens), out)
"""


def test_transformers_reconstructs_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    """A run of the trainer, exported by the command."""
    config: MAEConfig = mae_config(tmp_path, data__channels=3, criterion__norm_pix_loss=True)
    (tmp_path / "run.yaml").write_text(config.dump_yaml(), encoding="utf-8")
    short = ["optimization.epochs=1", "optimization.warmup=0", "logging.write_tag=mae"]
    assert main(["pretrain", "--fname", str(tmp_path / "run.yaml"), *short]) == 0
    run, folder = tmp_path / "mae-latest.pth.tar", tmp_path / "folder"
    assert main(["export", str(run), str(folder), "--to", "huggingface"]) == 0
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    torch.save((images, noise), tmp_path / "given.pt")
    words = [
        sys.executable,
        "-c",
        READ,
        *map(str, (folder, tmp_path / "given.pt", tmp_path / "out")),
    ]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loss, logits, tokens = torch.load(tmp_path / "out")

    model = MAE.build(config, 3, 1).eval()
    assert isinstance(model, MAE)
    model.load_weights(Found(run, load(run)))
    kept = keep_lowest(noise, RATIO)
    with torch.no_grad():
        latent = model.backbone.tokens(images, kept.indices)
        own = model.decoder(latent, kept)
        error = masked_error(own, model.target(images), kept.masked)
    for found, expected in ((logits, own), (tokens, latent), (loss, error)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    said = json.loads((folder / "config.json").read_text())
    assert (said["layer_norm_eps"], said["norm_pix_loss"]) == (1e-6, True)
    assert "ViTMAEForPreTraining" in (folder / "README.md").read_text()


def test_a_folder_comes_back_with_every_bit(tmp_path: Path) -> None:
    model = random_mae(norm_pix_loss=False)
    run, folder = reading.read(written(tmp_path, model)), tmp_path / "folder"
    huggingface.write(folder, run)
    back = reading.read(folder)
    assert same(back.encoder, run.encoder)
    assert back.pixels
    assert run.pixels
    assert same(back.pixels.parts["decoder"], run.pixels.parts["decoder"])
    assert back.pixels.mae == run.pixels.mae
    assert same(whole(started(folder)), whole(model))
    assert msn.load_encoder(folder).digest == msn.load_encoder(tmp_path / "run.pth.tar").digest
    config = json.loads((folder / "config.json").read_text())
    for change, problem in (
        ({"decoder_num_hidden_layers": 3}, "decoder_num_hidden_layers is 3, but .* of 2"),
        ({"decoder_num_attention_heads": 5}, "its decoder.* do not fit its encoder"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=problem):
            reading.read(folder)


@pytest.mark.parametrize("names", ["saved", "version 4", "version 5"])
def test_folders_of_transformers_under_all_names(tmp_path: Path, names: str) -> None:
    """Those of facebook/vit-mae-base are of version 4; version 5 saves the decoder's otherwise."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "decoder_num_hidden_layers": 2}
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            decoder_hidden_size=32,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=128,
            layer_norm_eps=1e-6,
            **sizes,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if names == "version 5":
        tensors = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
        save_file(tensors, file)
    elif names == "version 4":
        old = {
            n.replace("decoder_encoder.layer", "decoder_layers"): t
            for n, t in read_file(file).items()
        }
        save_file(old, file)
    model = started(tmp_path)
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    kept = keep_lowest(noise, RATIO)
    with torch.no_grad():
        own = model.decoder(model.backbone.tokens(images, kept.indices), kept)
        expected = theirs(images, noise=noise).logits
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    huggingface.write(tmp_path / "again", reading.read(tmp_path))
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "again")
    assert same(dict(again.state_dict()), dict(theirs.state_dict()))
    ViTMAEModel(theirs.config).save_pretrained(tmp_path / "encoder")
    assert reading.read(tmp_path / "encoder").pixels is None
