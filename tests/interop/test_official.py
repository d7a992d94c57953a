"""Files of the official code: read by what they hold, written so that they could be theirs."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.sizes import ENCODERS
from msn.interop import official, reading
from msn.interop.reading import read
from msn.interop.weights import weights_from
from msn.models.encoder import NORMED
from msn.runtime.errors import UserError
from msn.train.build import build_parts
from msn.train.resuming import resume
from tests.support.encoders import (
    RELEASED,
    TINY,
    images,
    random_weights,
    relative,
    released_state,
    same,
)
from tests.support.experiments import msn_of, tiny_config


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_shapes_tell_their_encoder(name: str) -> None:
    model, positions = RELEASED[name]
    state = released_state(name)
    weights = official.from_state(state, path=Path(name))
    assert weights.architecture[:3] == (ENCODERS[model], 3, 224)
    assert weights.encoder["pos_embed"].shape[1] == positions
    assert len(weights.head) + len(weights.encoder) == len(state["target_encoder"])
    assert weights.prototypes is not None
    assert weights.prototypes.shape == (1024, 256)


@pytest.mark.slow
def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    theirs = released_state("vits16_800ep", values=True)
    torch.save(theirs, tmp_path / "theirs.pth.tar")
    official.write(tmp_path / "ours.pth.tar", reading.read(tmp_path / "theirs.pth.tar"))
    ours = torch.load(tmp_path / "ours.pth.tar", weights_only=True)
    bare = {n.removeprefix("module."): t for n, t in theirs["target_encoder"].items()}
    assert same(ours["target_encoder"], bare)
    assert torch.equal(ours["prototypes"], theirs["prototypes"])


def test_an_unofficial_width_keeps_its_heads_and_normalization(tmp_path: Path) -> None:
    path, weights = tmp_path / "a.pth.tar", random_weights(in_chans=1)
    official.write(path, weights)
    back = reading.read(path)
    assert back.architecture == weights.architecture
    assert back.normalization == weights.normalization
    assert read(path).architecture == weights.architecture  # and in evaluation
    with pytest.raises(UserError, match=r"48 wide .* give --num-heads"):
        weights_from(weights.encoder, path=path)


def test_target_and_anchor_of_a_run(tmp_path: Path) -> None:
    target, anchor = random_weights(), random_weights(image_size=20)
    state = {
        "encoder": anchor.encoder | anchor.head,
        "target_encoder": target.encoder | target.head,
        "config": {"meta": {"encoder": TINY._asdict()}},
    }
    assert same(official.from_state(state, path=tmp_path).encoder, target.encoder)
    assert same(official.from_state(state, path=tmp_path, which="anchor").encoder, anchor.encoder)
    with pytest.raises(UserError, match=r"no 'encoder'.*take the target encoder"):
        official.from_state(
            {key: state[key] for key in ("target_encoder", "config")},
            path=tmp_path,
            which="anchor",
        )


def test_build_computes_what_the_tensors_say() -> None:
    weights = random_weights()
    encoder = weights.build()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    views = images(16)
    assert encoder(views).shape == (2, 16)
    bare = random_weights(with_head=False).build()
    assert relative(bare.features(views, NORMED), encoder.features(views, NORMED)) == 0.0


def test_all_that_is_wrong_is_listed(tmp_path: Path) -> None:
    tensors = dict(random_weights().encoder)
    for name in ("norm.bias", "blocks.1.mlp.fc2.weight", "blocks.2.norm1.weight"):
        del tensors[name]
    tensors["blocks.0.attn.proj.weight"] = torch.zeros(47, 48)
    tensors["dist_token"] = torch.zeros(1)
    with pytest.raises(UserError) as error:
        weights_from(tensors, path=tmp_path / "a", num_heads=4)
    for part in (
        "norm.bias missing",
        "blocks.1.mlp.fc2.weight missing",
        "blocks.2.norm1.weight missing",
        "dist_token unknown",
        "blocks.0.attn.proj.weight is (47, 48) and must be (48, 48)",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"target_encoder": random_weights().head}, "projection head without an encoder"),
        ({"target_encoder": {"cls_token": 1}}, "must map names to tensors"),
        ({"target_encoder": {}}, "must map names to tensors"),
        (
            {"target_encoder": random_weights().encoder, "num_heads": 5},
            "5 attention heads do not divide the width 48",
        ),
        (
            {"target_encoder": random_weights().encoder, "num_heads": 4, "prototypes": 3},
            "'prototypes' is not a matrix",
        ),
        ({"model": random_weights().encoder}, "48 wide and 3 deep is no official model"),
        ({}, "no 'target_encoder'"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, state: Any, problem: str) -> None:
    torch.save(state, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match=problem) as error:
        reading.read(tmp_path / "a.pth.tar")
    assert "a.pth.tar" in str(error.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"target_encoder": Bomb()}, "a.pth.tar")
    with pytest.raises(UserError, match="holds pickled code, which is never run"):
        reading.read(Path("a.pth.tar"))
    assert not Path("exploded").exists()


def test_pretraining_starts_from_weights_without_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a folder for transformers becomes: both encoders have it, heads stay as drawn."""
    weights = random_weights(TINY, image_size=8, in_chans=1, with_head=False)
    official.write(tmp_path / "w.pth.tar", weights)
    config = tiny_config(
        tmp_path, meta__encoder=TINY._asdict(), meta__init_from=str(tmp_path / "w.pth.tar")
    )
    parts = build_parts(config, torch.device("cpu"))
    drawn = {name: tensor.clone() for name, tensor in msn_of(parts).anchor.state_dict().items()}
    assert resume(config, parts, tmp_path / "run", "tiny") == 0
    for encoder in (msn_of(parts).anchor, msn_of(parts).target):
        state = encoder.state_dict()
        assert torch.equal(state["pos_embed"], weights.encoder["pos_embed"])
        assert torch.equal(state["fc.fc1.weight"], drawn["fc.fc1.weight"])
    assert "warm start" in capsys.readouterr().out


def test_a_partial_head_is_refused(tmp_path: Path) -> None:
    weights = random_weights(TINY, image_size=8, in_chans=1)
    tensors = weights.encoder | {"fc.fc1.weight": weights.head["fc.fc1.weight"]}
    torch.save({"target_encoder": tensors}, tmp_path / "w.pth.tar")
    config = tiny_config(
        tmp_path, meta__encoder=TINY._asdict(), meta__init_from=str(tmp_path / "w.pth.tar")
    )
    with pytest.raises(UserError, match=r"fc\.fc1\.weight unknown"):
        resume(config, build_parts(config, torch.device("cpu")), tmp_path / "run", "tiny")
