"""Compiled blocks compute what the others do."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msn.build import build_parts
from msn.devices import require_compiler
from msn.errors import UserError
from msn.pretrain import train_step
from tests.experiments import batches, tiny_config, tiny_parts

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
    return losses, gradients, parts.model.anchor.state_dict()


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
