"""Weights shared out over two processes: the same run, and the same files, as with all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from msn.cli.main import main
from msn.config.kinds import MSNConfig
from msn.data.batch import Views
from msn.methods.optim import build_optimizer
from msn.runtime import checkpoint, collectives
from msn.runtime.errors import UserError
from msn.runtime.sharding import full
from msn.train.build import Parts, build_parts
from msn.train.pretraining import batches, run_state
from msn.train.probe import whole_encoder
from msn.train.resuming import restore
from msn.train.step import train_step
from tests.runtime.test_meaning import has_null_gradient
from tests.runtime.test_run import finished, losses, spawned, write_config
from tests.support.experiments import msn_of, tiny_config
from tests.support.processes import run_on
from tests.support.runs import assert_same

pytestmark = pytest.mark.processes

STEPS = 5
CPU = torch.device("cpu")
RECOMPUTED = {
    "criterion__freeze_proto": True,
    "meta__checkpoint_activations": True,
    "optimization__accumulate": 2,
}


def config_of(folder: Path, changes: dict[str, Any]) -> MSNConfig:
    shared = {"criterion__batch_size": None, "criterion__global_batch_size": 32}
    return tiny_config(folder, data__mask_scope="global", **shared, **changes)


def first_steps(config: MSNConfig, parts: Parts, dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradient norm of each of the first steps."""
    results = []
    for step, batch in zip(range(STEPS), batches(config, parts, 0), strict=False):
        views = batch.views.normalized(parts.mean.to(dtype), parts.std.to(dtype))
        result = train_step(parts, views, step)
        results.append(torch.stack([result.loss, result.grad_norm.detach()]))
    return results


def train(folder: Path, dtype: torch.dtype, changes: dict[str, Any]) -> dict[str, Any]:
    """Some steps; the losses, and the whole weights, on every process."""
    config = config_of(folder, changes)
    parts = build_parts(config, CPU)
    parts.model.to(dtype)
    optimizer = build_optimizer(parts.model.parameter_groups())
    parts = replace(parts, optimizer=optimizer).replicated()
    results = first_steps(config, parts, dtype)
    held = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel() for p in parts.model.parameters()
    )
    weights = {name: full(value) for name, value in parts.model.state_dict().items()}
    return {"results": torch.stack(results), "weights": weights, "held": held}


@pytest.mark.parametrize(
    ("dtype", "tolerance", "changes"),
    [
        (torch.float64, 1e-9, {"optimization__clip_grad": 0.3}),
        (torch.float64, 1e-9, RECOMPUTED),
        (torch.float32, 1e-5, {}),
    ],
    ids=["clipped", "recomputed", "f32"],
)
def test_sharded_steps_are_those_of_whole_replicas(
    tmp_path: Path, dtype: torch.dtype, tolerance: float, changes: dict[str, Any]
) -> None:
    replicas = run_on(2, train, tmp_path, dtype, changes)
    shares = run_on(2, train, tmp_path, dtype, {**changes, "meta__shard": True})
    for share, replica in zip(shares, replicas, strict=True):
        torch.testing.assert_close(
            share["results"], replica["results"], rtol=tolerance, atol=tolerance
        )
        assert share["weights"].keys() == replica["weights"].keys()
        for name, value in replica["weights"].items():
            if dtype == torch.float32 and has_null_gradient(name):
                continue
            difference = (share["weights"][name] - value).abs().max()
            assert float(difference) < tolerance, name
        assert share["held"] < 0.7 * replica["held"]
    assert sum(share["held"] for share in shares) == replicas[0]["held"]


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"meta\.shard: true .* there is one only; start several"):
        build_parts(tiny_config(tmp_path, meta__shard=True), CPU)


def test_a_step_that_is_not_finite_changes_no_share(tmp_path: Path) -> None:
    for before, after in run_on(2, broken_step, tmp_path):
        for name, value in before.items():
            assert torch.equal(value, after[name]), name


def broken_step(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    config = config_of(folder, {"meta__shard": True})
    parts = build_parts(config, CPU)
    first_steps(config, parts, torch.float32)
    trained = [*msn_of(parts).anchor.named_parameters(), ("prototypes", msn_of(parts).prototypes)]
    before = {name: full(value).clone() for name, value in trained}
    views = next(batches(config, parts, STEPS)).views.normalized(parts.mean, parts.std)
    if collectives.rank() == 1:
        views = Views({**views.kinds, "random": views["random"] * torch.inf})
    train_step(parts, views, STEPS)
    return before, {name: full(value) for name, value in trained}


# --- checkpoints


def saved(folder: Path, steps: bool, changes: dict[str, Any]) -> None:
    """Resume from the file if there is one, go some steps, write the file."""
    config = config_of(folder, changes)
    parts, path = build_parts(config, CPU), folder / "state.pth.tar"
    if path.exists():
        restore(config, parts, checkpoint.Found(path, checkpoint.load(path)))
    parts = parts.replicated()
    if steps:
        first_steps(config, parts, torch.float32)
    state = run_state(config, parts, 0.0, STEPS)
    if collectives.rank() == 0:
        checkpoint.save(path, state)


def test_files_pass_between_one_process_and_shares_bit_for_bit(tmp_path: Path) -> None:
    path, shard = tmp_path / "state.pth.tar", {"meta__shard": True}
    run_on(1, saved, tmp_path, True, {})
    alone = checkpoint.load(path)
    run_on(2, saved, tmp_path, False, shard)
    assert_same_but_world(checkpoint.load(path), alone)
    run_on(2, saved, tmp_path, True, shard)
    shares = checkpoint.load(path)
    assert not torch.equal(shares["prototypes"], alone["prototypes"])
    run_on(1, saved, tmp_path, False, {})
    assert_same_but_world(checkpoint.load(path), shares)


def assert_same_but_world(state: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(state) == list(other)
    for key in ("encoder", "target_encoder", "prototypes", "opt"):
        assert_same(state[key], other[key])


def features_of_both(folder: Path) -> tuple[Tensor, Tensor] | None:
    config = config_of(folder, {"meta__shard": True})
    parts = build_parts(config, CPU)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shares = msn_of(parts).target.eval()(images)
        target = whole_encoder(config, parts).eval()
        return (shares, target(images)) if collectives.rank() == 0 else None


def test_rank_0_gets_a_whole_encoder_to_probe(tmp_path: Path) -> None:
    found, nothing = run_on(2, features_of_both, tmp_path)
    assert nothing is None
    torch.testing.assert_close(*found)


def test_a_sharded_run_is_probed_and_saved_and_goes_on_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tmp_path / "run", logging__probe={"every": 1})
    code, out, err = finished(spawned(config, "optimization.epochs=1", "meta.shard=true"))
    assert (code, err) == (0, "")
    assert "finished: 1 epoch, 40 steps" in out
    assert (tmp_path / "run" / "tiny-probe.csv").read_text().count("\n") == 2
    assert main(["pretrain", "--fname", str(config)]) == 0
    out = capsys.readouterr().out
    assert "resumed from" in out
    assert "changed since the checkpoint: meta.shard: True -> False" in out
    assert losses(tmp_path / "run")[-1][0] == 76
