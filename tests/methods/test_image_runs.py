"""Runs of MAE and SimMIM mean the same however they are cut, shared out, compiled or broken off."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import FSDPModule

import msn
from msn.cli.main import main
from msn.config.kinds import Config
from msn.methods import method_of
from msn.methods.mae import MAE
from msn.methods.optim import build_optimizer
from msn.runtime import checkpoint
from msn.runtime.sharding import full
from msn.train.build import Parts, build_parts
from msn.train.pretraining import batches, pretrain
from msn.train.profiling import AFTER, WAIT
from msn.train.step import train_step
from tests.methods.test_mae import mae_config
from tests.support.processes import run_on
from tests.support.runs import assert_same, killed_at
from tests.support.simmim import RESNET, simmim_config

CPU = torch.device("cpu")
KINDS: dict[str, tuple[Callable[..., Config], dict[str, Any]]] = {
    "mae": (mae_config, {"criterion__decoder_depth": 2}),
    "vit": (simmim_config, {}),
    "resnet": (simmim_config, {"meta__encoder": RESNET}),
}
BY_KIND = pytest.mark.parametrize("kind", KINDS)
ENCODER = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
STEPS = 3


def config_of(kind: str, folder: Path, **changes: Any) -> Config:
    """A run of 40 steps of 32 images; changes are named SECTION__KEY."""
    build, own = KINDS[kind]
    shared = {
        "criterion__batch_size": None,
        "criterion__global_batch_size": 32,
        "logging__log_freq": 1,
        "logging__write_tag": "tiny",
        "logging__tensorboard": False,
        "meta__drop_path_rate": 0.0,  # which is drawn by process
        "optimization__epochs": 1,
        "optimization__warmup": 0.2,
    }
    return build(folder, **{**shared, **own, **changes})


def steps_of(kind: str, folder: Path, changes: dict[str, Any], single: bool = False) -> Any:
    """Losses of a few steps, in float64 unless `single`, the weights then, and what is sharded."""
    config = config_of(kind, folder, **changes)
    parts: Parts = build_parts(config, CPU)
    if not single:
        parts.model.double()
    parts = replace(parts, optimizer=build_optimizer(parts.model.parameter_groups())).replicated()
    mean, std = (value if single else value.double() for value in (parts.mean, parts.std))
    loaded = zip(range(STEPS), batches(config, parts, 0), strict=False)
    losses = [
        train_step(parts, batch.views.normalized(mean, std), step).loss for step, batch in loaded
    ]
    weights = {name: full(tensor).clone() for name, tensor in parts.model.state_dict().items()}
    shared = [name for name, part in parts.model.named_modules() if isinstance(part, FSDPModule)]
    return torch.stack(losses), weights, shared


def assert_close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.processes
def test_mae_is_the_same_on_two_processes_in_parts_and_recomputed(tmp_path: Path) -> None:
    alone = steps_of("mae", tmp_path, {})
    for together in run_on(2, steps_of, "mae", tmp_path, {}):
        assert_close(together, alone)
    for change in ({"optimization__accumulate": 4}, {"meta__checkpoint_activations": True}):
        assert_close(steps_of("mae", tmp_path, change), alone)


@pytest.mark.processes
@BY_KIND
def test_shares_make_the_same_steps(tmp_path: Path, kind: str) -> None:
    alone = steps_of(kind, tmp_path, {})
    shard = {"meta__shard": True, "optimization__accumulate": 1 if kind == "resnet" else 2}
    for share in run_on(2, steps_of, kind, tmp_path, shard):
        assert_close(share, alone)
        assert "backbone" in share[2]
        assert kind != "mae" or {"decoder", "decoder.blocks.0", "decoder.blocks.1"} <= {*share[2]}


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)
def test_a_compiled_decoder_is_no_other(tmp_path: Path) -> None:
    """Of an encoder all blocks but the last are compiled, so of one block none."""
    one = {"criterion__decoder_depth": 1, "meta__encoder": {**ENCODER, "depth": 1}}
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = steps_of("mae", tmp_path, {**one, "meta__compile": True}, single=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    plain = steps_of("mae", tmp_path, one, single=True)
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-5, atol=0)


@pytest.mark.processes
@BY_KIND
def test_killed_at_a_step_it_ends_as_if_unbroken(tmp_path: Path, kind: str) -> None:
    """Begun from other weights, to which it does not go back."""
    other = tmp_path / "other.pth.tar"
    torch.save(build_parts(config_of(kind, tmp_path, meta__seed=7), CPU).model.state(), other)
    rest = {"logging__checkpoint_freq_itr": 3, "meta__init_from": str(other)}
    whole, killed = (config_of(kind, tmp_path / name, **rest) for name in ("whole", "killed"))
    pretrain(whole, CPU)
    (tmp_path / "killed.yaml").write_text(killed.dump_yaml(), encoding="utf-8")
    killed_at(["pretrain", "--fname", str(tmp_path / "killed.yaml")], 8)
    latest = [checkpoint.latest_path(tmp_path / name, "tiny") for name in ("whole", "killed")]
    assert 0 < checkpoint.load(latest[1])["step"] < 40
    pretrain(killed, CPU)
    states = [checkpoint.load(path) for path in latest]
    assert states[0]["step"] == 40
    assert_same(states[1], states[0])


@pytest.mark.slow
@BY_KIND
def test_a_run_is_profiled_exported_and_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    config = config_of(kind, tmp_path / "run")
    (tmp_path / "run.yaml").write_text(config.dump_yaml(), encoding="utf-8")
    words = ["pretrain", "--fname", str(tmp_path / "run.yaml")]
    assert main([*words, "--profile", "2"]) == 0
    table = capsys.readouterr().out
    for part in (WAIT, *method_of(config).PHASES, *AFTER):
        assert f"\n{part} " in table, part
    assert main(words) == 0
    run = checkpoint.latest_path(tmp_path / "run", "tiny")
    encoder = msn.load_encoder(run)
    features = encoder.features(np.zeros((3, 40, 48, 1), dtype=np.uint8))
    assert features.shape == (3, encoder.width())
    assert features.isfinite().all()
    assert main(["export", str(run), str(tmp_path / "release"), "--to", "release"]) == 0
    assert msn.load_encoder(tmp_path / "release").digest == encoder.digest
    assert main(["import", str(tmp_path / "release"), "--as", "run", str(tmp_path / "mine")]) == 0
    (again,) = (tmp_path / "mine").glob("*-config.yaml")
    capsys.readouterr()
    assert main(["pretrain", "--fname", str(again), "optimization.epochs=1"]) == 0
    assert "40 of 40 steps done" in capsys.readouterr().out


def test_the_decoder_is_part_of_what_is_compiled_and_shared_out(tmp_path: Path) -> None:
    model = build_parts(config_of("mae", tmp_path), CPU).model
    assert isinstance(model, MAE)
    assert [*model.networks()] == [*model.trained_networks()] == [model.backbone, model.decoder]
    assert model.decoder.stages()[1:] == [*model.decoder.blocks]
