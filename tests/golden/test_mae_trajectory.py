"""Twelve whole training steps of MAE: losses, rates, norms, and where all weights end up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.sections.mae import MAEOptimization
from msn.data.batch import Views
from msn.methods.image_method import IMAGE
from msn.methods.mae import MAE
from msn.methods.optim import build_optimizer
from msn.methods.schedules import Schedules, mae_schedules
from msn.models.masking import Kept, keep_lowest
from msn.train.build import Parts
from msn.train.step import train_step
from tests.golden.mae_models import golden, join, mae_of
from tests.golden.record import DTYPES, Golden, assert_close, golden_files
from tests.golden.record import MAE as FOLDER
from tests.support.experiments import tiny_parts

pytestmark = pytest.mark.slow

RUNS = golden_files("trajectory*.npz", FOLDER)


def updates(data: Golden) -> list[list[int]]:
    """The iterations that each update sums up; what an epoch leaves of a group is lost."""
    config = data.meta["config"]
    length, count = config["iterations_per_epoch"], config["accum_iter"]
    first = [
        epoch * length + group * count
        for epoch in range(config["steps"] // length)
        for group in range(length // count)
    ]
    return [list(range(start, start + count)) for start in first]


def rebuild(data: Golden, folder: Path, dtype: torch.dtype) -> Parts:
    """The parts of a run at the recorded starting point, with the recorded masks."""
    config, groups = data.meta["config"], updates(data)
    model = mae_of(
        data, dtype, norm_pix_loss=config["norm_pix_loss"], accumulate=config["accum_iter"]
    )
    noise = data.tensor("noise", dtype)

    def draw_kept(images: Tensor, step: int) -> Kept:
        return keep_lowest(noise[groups[step]].flatten(0, 1), config["mask_ratio"])

    model.draw_kept = draw_kept  # type: ignore[method-assign]
    opt = MAEOptimization(
        epochs=config["epochs"],
        warmup=config["warmup_epochs"],
        lr=config["lr"],
        final_lr=config["min_lr"],
    )
    rate = mae_schedules(opt, config["iterations_per_epoch"], 1.0).learning_rate
    return replace(
        tiny_parts(folder),
        model=model,
        replica=model,
        optimizer=build_optimizer(model.parameter_groups()),
        # Recorded by iteration; ours is by update, and read at the one that comes next.
        schedules=Schedules(
            lambda step: rate(groups[int(step) - 1][0] + 1), lambda step: config["weight_decay"]
        ),
        clip_grad=None,
    )


def trained(model: MAE) -> dict[str, Tensor]:
    """The trained parameters by their official names."""
    named = join(dict(model.backbone.named_parameters()), dict(model.decoder.named_parameters()))
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def check_end(data: Golden, parts: Parts) -> None:
    assert isinstance(parts.model, MAE)
    parameters = trained(parts.model)
    assert set(data.names("final64.")) == parameters.keys()
    limits = {name: data.meta["maxabs_f32_vs_f64"][f"final.{name}"][0] for name in parameters}
    usual = max(limit for name, limit in limits.items() if not name.endswith("qkv.bias"))
    for name, own in parameters.items():
        float64, expected = own.dtype == torch.float64, data.tensor(f"final64.{name}")
        end, limit = own, min(limits[name], usual)
        if name.endswith("qkv.bias") and not float64:  # a key's is moved by rounding noise alone
            end, expected = (torch.cat(tensor.chunk(3)[::2]) for tensor in (own, expected))
        assert_close(end, expected, float64=float64, tolerance=limit, what=name)
        for moment in ("exp_avg", "exp_avg_sq") if float64 else ():
            kept = parts.optimizer.state[parameters[name]][moment]
            assert_close(kept, data[f"{moment}64.{name}"], float64=True, what=f"{moment} {name}")


@DTYPES
@pytest.mark.parametrize("name", RUNS)
def test_twelve_iterations(name: str, tmp_path: Path, dtype: torch.dtype) -> None:
    data, float64 = golden(name), dtype == torch.float64
    parts = rebuild(data, tmp_path, dtype)
    assert isinstance(parts.model, MAE)
    parameters, limit = trained(parts.model), data.meta["maxabs_f32_vs_f64"]["loss"][0]
    for step, iterations in enumerate(updates(data)):
        before = torch.cat([parameter.flatten() for parameter in parameters.values()]).norm()
        images = data.tensor("imgs", dtype)[iterations].flatten(0, 1)
        result = train_step(parts, Views({IMAGE: images[None]}), step)
        expected = data.tensor("loss64")[iterations].mean()
        assert_close(result.loss, expected, float64=float64, tolerance=limit, what=f"loss {step}")
        for group in parts.optimizer.param_groups:
            assert group["lr"] == pytest.approx(data["lr"][iterations[0]], rel=1e-12, abs=1e-18)
        if float64:
            norm = data.tensor("grad_norm64")[iterations[-1]]
            assert_close(result.grad_norm, norm, float64=True, what=f"gradient norm {step}")
            recorded = data.tensor("param_norm_before64")[iterations[0]]
            assert_close(before, recorded, float64=True, what=f"norm of the weights {step}")
    check_end(data, parts)


@pytest.mark.parametrize("name", RUNS)
def test_groups_of_the_optimizer(name: str, tmp_path: Path) -> None:
    data = golden(name)
    parts = rebuild(data, tmp_path, torch.float64)
    assert isinstance(parts.model, MAE)
    names = {id(parameter): name for name, parameter in trained(parts.model).items()}
    own = {
        bool(group["decayed"]): {names[id(parameter)] for parameter in group["params"]}
        for group in parts.optimizer.param_groups
    }
    groups: list[dict[str, Any]] = data.meta["groups"]
    assert own == {bool(group["weight_decay"]): set(group["names"]) for group in groups}
    config = data.meta["config"]
    for group in parts.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == (tuple(config["betas"]), config["eps"])
