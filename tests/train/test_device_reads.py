"""A training step leaves the device alone: nothing is read back, nothing lies on another device.

Run on torch's "meta" device, which has no values: whatever reads one fails, where a GPU would wait.
Operations of its tensors with the host's, which a GPU refuses, are found by looking at each.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msn.data.loader import training_batches
from msn.data.order import Order
from msn.methods.optim import MomentumSGD
from msn.train.build import Parts, build_parts
from msn.train.step import StepResult, train_step
from tests.support.experiments import msn_of, tiny_config

META = torch.device("meta")
VARIANTS: list[dict[str, Any]] = [
    {},
    {"data__augment_on": "device", "data__flip": 0.5},
    {"data__mask_scope": "image", "data__label_smoothing": 0.1},
    {"optimization__accumulate": 2, "criterion__batch_size": 16},
    {"meta__checkpoint_activations": True, "optimization__clip_grad": 3.0},
    {"criterion__use_sinkhorn": False, "criterion__use_ent": True, "data__focal_views": 0},
    {"meta__drop_path_rate": 0.2, "criterion__freeze_proto": True},
]


@pytest.fixture(autouse=True)
def autocast_for_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.autocast, which is off here, be asked for "meta"."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **settings: Any) -> torch.autocast:
        return real("cpu" if device_type == "meta" else device_type, *args, **settings)

    monkeypatch.setattr(torch, "autocast", autocast)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, but copies and scalars, as a GPU does."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and func not in self.COPIES:
            raise RuntimeError(f"{func} mixes devices: {sorted(devices)}")
        return func(*args, **(kwargs or {}))


def steps_on_meta(folder: Path, **changes: Any) -> tuple[Parts, StepResult]:
    """Two training steps; the optimizer, whose fused kernel "meta" lacks, is a simple one."""
    parts = build_parts(tiny_config(folder, **changes), META)
    parts = replace(parts, optimizer=MomentumSGD(parts.optimizer.param_groups))
    order = Order(len(parts.source), parts.batch.own, parts.steps_per_epoch, parts.seed)
    loaded = training_batches(
        parts.source, parts.views, order, start_step=0, stop_step=2, num_workers=0
    )
    with OneDevice():
        for step, (views, _) in enumerate(loaded):
            result = train_step(parts, views.normalized(parts.mean, parts.std), step)
        parts.model.metrics(result.output)
    return parts, result


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ",".join(changes) or "default")
@pytest.mark.slow
def test_a_step_and_its_metrics_read_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    parts, result = steps_on_meta(tmp_path, **changes)
    metrics = parts.model.metrics(result.output)
    left_behind = [result.loss, result.grad_norm, *metrics.values(), *parts.model.parameters()]
    assert {tensor.device for tensor in left_behind} == {META}
    assert all(parameter.grad is not None for parameter in msn_of(parts).anchor.parameters())


@pytest.mark.slow
def test_a_read_or_a_mixture_would_fail(tmp_path: Path) -> None:
    parts, result = steps_on_meta(tmp_path)
    with pytest.raises(RuntimeError, match="meta"):
        float(result.loss)
    with pytest.raises((RuntimeError, NotImplementedError)):
        parts.guard.first_bad_step()
    with OneDevice(), pytest.raises(RuntimeError, match=r"mm\.default mixes devices"):
        torch.mm(msn_of(parts).prototypes, torch.zeros(8, 2))
