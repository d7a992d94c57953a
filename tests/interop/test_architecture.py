from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.sizes import ENCODERS, EncoderSize
from msn.interop.architecture import infer_architecture
from msn.interop.reading import read
from msn.models.head import projection_head
from msn.models.vit import build_encoder
from msn.runtime.errors import UserError

SMALL = EncoderSize(4, 64, 3, 1)


def official_file(path: Path, size: EncoderSize = SMALL, *, seed: int = 0, **changes: Any) -> Path:
    """As released: a target encoder with its head, under the prefix of DistributedDataParallel."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = projection_head(size.embed_dim, 32, 8, batch_norm=True)
        vit = build_encoder(size, image_size=16, head=head)
    state = {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}
    torch.save({"target_encoder": state, "prototypes": torch.zeros(4, 8), **changes}, path)
    return path


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_architecture_of_every_official_model_follows_from_its_shapes(
    name: str, in_chans: int
) -> None:
    with torch.device("meta"):
        weights = build_encoder(ENCODERS[name], in_chans=in_chans).state_dict()
    found = infer_architecture(weights, path=Path("w"))
    assert found[:3] == (ENCODERS[name], in_chans, 224)


@pytest.mark.parametrize(
    ("size", "image_size"),
    [
        (EncoderSize(4, 50, 2, 5, 2.39), 16),  # 50 * 2.39 is no whole number
        (EncoderSize(2, 16, 1, 2, 4.0), 9),
        (EncoderSize(None, 64, 2, 8, 4.0), 40),
    ],
)
def test_the_number_of_heads_is_that_of_the_config(size: EncoderSize, image_size: int) -> None:
    vit = build_encoder(size, image_size=image_size)
    config = {"meta": {"encoder": {"num_heads": size.num_heads}, "model_name": None}}
    found = infer_architecture(vit.state_dict(), config, path=Path("w"))
    twin = found.build()
    twin.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(twin(images), vit(images))


def test_without_a_config_a_width_that_64_does_not_divide_is_refused() -> None:
    weights = build_encoder(EncoderSize(4, 50, 2, 5), image_size=16).state_dict()
    with pytest.raises(UserError, match=r"50 wide and 2 deep .* number of heads"):
        infer_architecture(weights, path=Path("w"))


@pytest.mark.parametrize("missing", ["cls_token", "pos_embed", "patch_embed.proj.weight"])
def test_other_weights_are_refused(missing: str) -> None:
    weights = build_encoder(SMALL, image_size=16).state_dict()
    del weights[missing]
    with pytest.raises(UserError, match=f"not the weights of a Vision Transformer.*{missing}"):
        infer_architecture(weights, path=Path("w"))


def test_an_official_file(tmp_path: Path) -> None:
    path = official_file(tmp_path / "official.pth.tar")
    found = read(path)
    assert found.architecture[:3] == (SMALL, 3, 16)
    assert not any(name.startswith(("fc.", "module.")) for name in found.encoder)
    assert (found.config, found.stated) == ({}, None)
    vit = found.trainable()
    saved = torch.load(path)["target_encoder"]
    assert all(torch.equal(saved[f"module.{name}"], x) for name, x in vit.state_dict().items())


def test_target_or_anchor(tmp_path: Path) -> None:
    anchor = build_encoder(SMALL, image_size=16).state_dict()
    path = official_file(tmp_path / "both.pth.tar", encoder=anchor)
    found = read(path, which="anchor")
    assert torch.equal(found.encoder["cls_token"], anchor["cls_token"])
    assert not torch.equal(read(path).encoder["cls_token"], anchor["cls_token"])
    alone = official_file(tmp_path / "target.pth.tar")
    with pytest.raises(UserError, match="has no 'encoder', like the released files"):
        read(alone, which="anchor")


def test_a_wrong_model_name_names_both(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth.tar"
    vit = build_encoder(ENCODERS["deit_tiny"], image_size=32)
    torch.save({"target_encoder": vit.state_dict()}, path)
    assert read(path, model_name="deit_tiny").architecture.size.embed_dim == 192
    with pytest.raises(UserError, match=r"are of deit_tiny \(width 192.*not of deit_small; give"):
        read(path, model_name="deit_small")
    assert read(path, model_name="vit_tiny").architecture.size.embed_dim == 192
    with pytest.raises(UserError, match=r"not of vit_small; give the name deit_tiny"):
        read(path, model_name="vit_small")
    for name in ("vit_small2", "vit_", "vit_4gf", "resnet"):
        with pytest.raises(UserError, match=f"--model-name {name}: not a model; known are deit_"):
            read(path, model_name=name)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth.tar"
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no key 'target_encoder'"):
        read(path)
    torch.save({"target_encoder": {"cls_token": "text"}}, path)
    with pytest.raises(UserError, match="not a state dict"):
        read(path)
    weights = build_encoder(SMALL, image_size=16).state_dict()
    del weights["blocks.1.mlp.fc2.bias"]
    torch.save({"target_encoder": weights}, path)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc2\.bias missing"):
        read(path).trainable()
