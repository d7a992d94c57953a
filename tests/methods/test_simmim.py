"""SimMIM as a method: what is masked stays unseen, and a run means the same however it is cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.data.batch import Views
from msn.methods.image_method import IMAGE
from msn.methods.optim import build_optimizer
from msn.methods.simmim import SimMIM
from msn.models.mask_units import enlarged
from msn.runtime import checkpoint
from msn.train.build import Parts, build_parts
from msn.train.pretraining import batches, pretrain
from msn.train.step import train_step
from tests.support.processes import run_on
from tests.support.runs import Broken, assert_same
from tests.support.simmim import RESNET, simmim_config

CPU = torch.device("cpu")
SMALL = {"criterion__batch_size": None, "criterion__global_batch_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "vit": {},
    "plain": {"meta__positions": "learned"},
    "resnet": {"meta__encoder": RESNET},
    "a2mim": {
        "meta__encoder": RESNET,
        "criterion__variant": "a2mim",
        "criterion__mask_unit": 16,
    },
}
BY_KIND = pytest.mark.parametrize("kind", KINDS)


def parts_of(folder: Path, **changes: Any) -> Parts:
    return build_parts(simmim_config(folder, **{**SMALL, **changes}), CPU)


def model_of(folder: Path, **changes: Any) -> SimMIM:
    model = parts_of(folder, **changes).model
    assert isinstance(model, SimMIM)
    return model


def steps_of(folder: Path, changes: dict[str, Any], count: int = 3) -> dict[str, Any]:
    """A few steps from the start, in float64."""
    config = simmim_config(folder, **{**SMALL, **changes})
    parts = build_parts(config, CPU)
    parts.model.double()
    optimizer = build_optimizer(parts.model.parameter_groups())
    parts = replace(parts, optimizer=optimizer).replicated()
    losses = []
    for step, batch in zip(range(count), batches(config, parts, 0), strict=False):
        views = batch.views.normalized(parts.mean.double(), parts.std.double())
        losses.append(train_step(parts, views, step).loss)
    return {"weights": parts.model.state_dict(), "losses": torch.stack(losses)}


def assert_close(own: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(own["losses"], other["losses"], rtol=1e-9, atol=1e-9)
    for name, value in other["weights"].items():
        torch.testing.assert_close(own["weights"][name], value, rtol=0, atol=1e-9)


# Stochastic depth draws by process.
@pytest.mark.processes
@BY_KIND
def test_the_same_on_two_processes(tmp_path: Path, kind: str) -> None:
    changes = {"meta__drop_path_rate": 0.0, **KINDS[kind]}
    (alone,) = run_on(1, steps_of, tmp_path, changes)
    for together in run_on(2, steps_of, tmp_path, changes):
        assert_close(together, alone)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "plain"])
def test_accumulating_is_the_same_as_a_large_batch(tmp_path: Path, kind: str) -> None:
    changes = {"meta__drop_path_rate": 0.0, **KINDS[kind]}
    whole = steps_of(tmp_path, changes)
    assert_close(steps_of(tmp_path, {**changes, "optimization__accumulate": 4}), whole)


def first_norm(model: SimMIM) -> torch.nn.BatchNorm2d:
    norm = model.backbone.bn1
    assert isinstance(norm, torch.nn.BatchNorm2d)
    return norm


@pytest.mark.slow
def test_accumulating_updates_batch_norm_once_for_each_part(tmp_path: Path) -> None:
    model = model_of(tmp_path, optimization__accumulate=2, **KINDS["resnet"])
    model(Views({IMAGE: torch.randn(1, 8, 1, 32, 32)}), step=0).loss.backward()
    assert first_norm(model).num_batches_tracked == 2


class Breaking(SimMIM):
    """SimMIM, until it fails in the middle of a step."""

    def forward(self, views: Views, *, step: int) -> Any:
        if step == 17:
            raise Broken
        return super().forward(views, step=step)


@pytest.mark.slow
@BY_KIND
def test_broken_off_it_ends_as_if_unbroken(tmp_path: Path, kind: str) -> None:
    settings = {"logging__checkpoint_freq_itr": 5, **KINDS[kind]}
    whole, broken = (simmim_config(tmp_path / name, **settings) for name in ("whole", "broken"))
    pretrain(whole, CPU)
    with pytest.raises(Broken):
        pretrain(broken, CPU, Breaking)
    pretrain(broken, CPU)
    states = [
        checkpoint.load(tmp_path / name / "tiny-latest.pth.tar") for name in ("whole", "broken")
    ]
    assert states[0]["step"] == 40
    assert_same(states[1], states[0])


@contextmanager
def frozen(model: SimMIM) -> Iterator[None]:
    """Running statistics of the batch would pass on what other images show."""
    model.eval()
    with torch.no_grad():
        yield


def changed_where_masked(model: SimMIM) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    units = model.draw_units(images, 0)
    mask = enlarged(units, model.masking.unit)[:, None]
    noise = torch.randn_like(images).masked_fill(~mask, 0.0)
    noise -= (noise.mean(dim=(2, 3), keepdim=True) * mask.numel() / mask.sum()) * mask
    return images, images + noise, units


@pytest.mark.parametrize(
    ("kind", "fill", "sees"),
    [
        ("vit", None, False),
        ("plain", None, False),
        ("resnet", None, False),
        ("resnet", "zero", False),
        ("resnet", "none", True),  # the stem looks across the border of a square
        ("a2mim", None, False),
    ],
)
def test_masked_pixels_are_not_seen(
    tmp_path: Path, kind: str, fill: str | None, sees: bool
) -> None:
    model = model_of(tmp_path, criterion__fill=fill, **KINDS[kind])
    model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # so that no branch starts as nothing
    first, second, units = changed_where_masked(model)
    with frozen(model):
        pixels = [model.reconstruct(images, units)[0] for images in (first, second)]
    difference = float((pixels[0] - pixels[1]).abs().max())
    assert (difference > 1e-6) if sees else (difference < 1e-12)


@BY_KIND
def test_every_parameter_learns(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, meta__drop_path_rate=0.0, **KINDS[kind])
    model(Views({IMAGE: torch.randn(1, 8, 1, 32, 32)}), step=0).loss.backward()
    grouped = [p for group in model.parameter_groups() for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in grouped)


def test_the_real_share_is_logged(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    metrics = model.metrics(model(Views({IMAGE: torch.randn(1, 8, 1, 32, 32)}), step=0))
    assert metrics.keys() == {"loss", *SimMIM.METRICS}
    assert float(metrics["masked"]) == 10 / 16  # not 0.6


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    gradients = []
    for recompute in (False, True):
        model = model_of(tmp_path, meta__checkpoint_activations=recompute)
        torch.manual_seed(0)
        model(Views({IMAGE: torch.randn(1, 8, 1, 32, 32)}), step=0).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        assert own is not None
        assert other is not None
        torch.testing.assert_close(own, other)


def test_a2mim_is_described(tmp_path: Path) -> None:
    config = simmim_config(tmp_path, **KINDS["a2mim"])
    facts = dict(SimMIM.plan(config, 1, 10))
    assert "stage 3" in facts["image"]
    assert "3 of 4 squares" in facts["mask"]
    assert facts["loss"] == "focal_l1 + 0.5 x frequency"
