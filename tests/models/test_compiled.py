"""Compiled blocks compute what the others do."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msn.runtime import collectives
from msn.runtime.devices import require_compiler
from msn.runtime.errors import UserError
from msn.runtime.sharding import full
from msn.train.build import build_parts
from msn.train.pretraining import pretrain
from msn.train.step import train_step
from tests.support.experiments import batches, msn_of, tiny_config, tiny_parts, write_tiny
from tests.support.processes import run_on
from tests.support.runs import assert_same, killed_at
from tests.train.test_pretraining import latest

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


def trained(
    folder: Path, compiled: bool
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of two steps, gradients of the second, and the weights after it."""
    parts = tiny_parts(
        folder,
        meta__compile=compiled,
        criterion__batch_size=16,
        optimization__accumulate=2,
        data__focal_views=0,
    )
    losses = [
        float(train_step(parts, views, step).loss)
        for step, views in enumerate(batches(parts, 32, 2))
    ]
    gradients = {
        name: parameter.grad
        for name, parameter in parts.model.named_parameters()
        if parameter.grad is not None
    }
    return losses, gradients, msn_of(parts).anchor.state_dict()


@needs_compiler
def test_compiled_equals_eager_in_fp32(tmp_path: Path) -> None:
    """Also under accumulation, which recomputes compiled blocks; the names are the same."""
    losses, gradients, weights = trained(tmp_path, compiled=False)
    same_losses, same_gradients, same_weights = trained(tmp_path, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert same_losses == pytest.approx(losses, rel=1e-5)
    assert same_gradients.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest)
    assert list(same_weights) == list(weights)


def gradient(folder: Path, precision: str, compiled: bool) -> Tensor:
    """Of the first step, all parameters in one vector."""
    parts = tiny_parts(folder, meta__compile=compiled, meta__precision=precision)
    train_step(parts, batches(parts, 32, 1)[0], 0)
    gradients = [p.grad.flatten() for p in parts.model.parameters() if p.grad is not None]
    return torch.cat(gradients)


@needs_compiler
def test_compiled_is_as_close_to_fp32_in_bf16(tmp_path: Path) -> None:
    """Neither keeps every product's rounding: what counts is the distance from the exact."""
    exact = gradient(tmp_path, "fp32", compiled=False)

    def distance(compiled: bool) -> float:
        found = gradient(tmp_path, "bf16", compiled)
        return float((found - exact).norm() / exact.norm())

    eager, compiled = distance(compiled=False), distance(compiled=True)
    assert 0 < compiled < 1.5 * eager < 0.2


@needs_compiler
def test_a_compiled_run_killed_and_resumed_ends_as_if_unbroken(tmp_path: Path) -> None:
    changes = {"meta__compile": True, "logging__checkpoint_freq_itr": 7}
    pretrain(tiny_config(tmp_path / "whole", **changes), torch.device("cpu"))
    file = write_tiny(tmp_path / "tiny.yaml", tmp_path / "killed", **changes)
    killed_at(["pretrain", "--fname", str(file)], 12)
    assert 0 < latest(tmp_path / "killed")["step"] < 40
    pretrain(tiny_config(tmp_path / "killed", **changes), torch.device("cpu"))
    assert_same(latest(tmp_path / "killed"), latest(tmp_path / "whole"))


def trained_together(folder: Path, compiled: bool, shard: bool) -> tuple[list[float], Tensor]:
    """Losses of two steps on several processes, and a weight of the first block after them."""
    block = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}
    changes = {"meta__compile": compiled, "meta__shard": shard, "meta__encoder": block}
    changes |= {"criterion__batch_size": 16, "data__focal_views": 0}
    parts = tiny_parts(folder, **changes).replicated()
    own = batches(parts, 16, 4)[collectives.rank() :: 2]
    losses = [float(train_step(parts, views, step).loss) for step, views in enumerate(own)]
    return losses, full(msn_of(parts).anchor.blocks[0].attn.qkv.weight.detach())


@needs_compiler
@pytest.mark.parametrize("shard", [False, True])
def test_two_compiled_processes_train_as_two_others(tmp_path: Path, shard: bool) -> None:
    eager = run_on(2, trained_together, tmp_path, False, shard)
    compiled = run_on(2, trained_together, tmp_path, True, shard)
    assert torch.equal(compiled[0][1], compiled[1][1])
    for (losses, _), (same_losses, _) in zip(eager, compiled, strict=True):
        assert same_losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_compiler_nothing_starts(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"meta\.compile: true needs a C\+\+ compiler.* g\+\+"):
        require_compiler(torch.device(device))
    with pytest.raises(UserError, match=r"meta\.compile"):
        build_parts(tiny_config(tmp_path, meta__compile=True), torch.device("cpu"))
