"""Twelve whole training steps of SimMIM: losses, rates, norms, and where all weights end up."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.sections.simmim import SimMIMOptimization
from msn.data.batch import Views
from msn.methods.image_method import IMAGE
from msn.methods.optim import build_optimizer, set_hyperparameters, step_unless
from msn.methods.schedules import Schedules, simmim_rate
from msn.methods.simmim import SimMIM
from msn.train.build import Parts
from msn.train.step import train_step
from tests.golden.record import SIMMIM, Golden, assert_close, golden_files
from tests.golden.simmim_models import golden, official_names, simmim_of, units_of
from tests.support.experiments import tiny_parts

pytestmark = pytest.mark.slow

close = partial(assert_close, float64=True)


def optimization_of(data: Golden) -> SimMIMOptimization:
    given = {key.removeprefix("TRAIN."): value for key, value in data.meta["train"].items()}
    milestones = given.get("LR_SCHEDULER.MULTISTEPS", [])
    return SimMIMOptimization(
        epochs=given["EPOCHS"],
        warmup=given["WARMUP_EPOCHS"],
        lr=given["BASE_LR"],
        start_lr=given["WARMUP_LR"],
        final_lr=given.get("MIN_LR", 0.0),
        weight_decay=given["WEIGHT_DECAY"],
        clip_grad=given["CLIP_GRAD"],
        schedule=given["LR_SCHEDULER.NAME"],
        gamma=given.get("LR_SCHEDULER.GAMMA", 0.1),
        milestones=milestones,
    )


def rebuild(data: Golden, folder: Path) -> Parts:
    """The parts of a run at the recorded starting point, with the recorded masks."""
    opt, model = optimization_of(data), simmim_of(data, torch.float64)
    cells = data.meta["config"]["mask_patch_size"] // data.meta["config"]["patch_size"]
    model.draw_units = lambda images, step: (  # type: ignore[method-assign]
        units_of(data.tensor("mask")[step], cells)
    )
    rate = simmim_rate(opt, data.meta["iterations_per_epoch"])
    return replace(
        tiny_parts(folder),
        model=model,
        replica=model,
        optimizer=build_optimizer(model.parameter_groups()),
        schedules=Schedules(rate, lambda step: opt.weight_decay),
        clip_grad=opt.clip_grad,
    )


def views_of(data: Golden, step: int) -> Views:
    return Views({IMAGE: data.tensor("x", torch.float64)[step][None]})


def check_end(data: Golden, parts: Parts) -> None:
    assert isinstance(parts.model, SimMIM)
    parameters = official_names(parts.model)
    assert set(data.names("final64.")) == parameters.keys()
    for name, parameter in parameters.items():
        close(parameter, data[f"final64.{name}"], what=name)
        for moment in ("exp_avg", "exp_avg_sq"):
            if f"{moment}64.{name}" in data:
                own = parts.optimizer.state[parameter][moment]
                close(own, data[f"{moment}64.{name}"], what=f"{moment} {name}")


def recorded_groups(data: Golden) -> list[tuple[float, set[str]]]:
    groups: list[dict[str, Any]] = data.meta["param_groups"]
    return [(group["weight_decay"], set(group["params"])) for group in groups]


@pytest.mark.parametrize(
    "name", [name for name in golden_files("trajectory_*.npz", SIMMIM) if "accum" not in name]
)
def test_twelve_steps(name: str, tmp_path: Path) -> None:
    data = golden(name)
    parts = rebuild(data, tmp_path)
    for step, loss in enumerate(data["loss64"]):
        result = train_step(parts, views_of(data, step), step)
        close(result.loss, torch.tensor(loss), what=f"loss {step}")
        close(result.grad_norm, torch.tensor(data["grad_norm64"][step]), what=f"norm {step}")
        for group in parts.optimizer.param_groups:
            assert group["lr"] == pytest.approx(data["lr64"][step], rel=1e-12)
    check_end(data, parts)
    assert isinstance(parts.model, SimMIM)
    names = {id(parameter): name for name, parameter in official_names(parts.model).items()}
    own = [
        (group["weight_decay"], {names[id(parameter)] for parameter in group["params"]})
        for group in parts.optimizer.param_groups
    ]
    assert own == recorded_groups(data)


def test_official_accumulation(tmp_path: Path) -> None:
    """Clip after every part, as the official code does, and only it: see docs/differences.md."""
    data = golden("trajectory_accum.npz")
    parts, count = rebuild(data, tmp_path), data.meta["train"]["TRAIN.ACCUMULATION_STEPS"]
    opt = optimization_of(data)
    assert opt.clip_grad
    for step, expected in enumerate(data["loss64"]):
        loss: Tensor = parts.replica(views_of(data, step), step=step).loss / count
        close(loss, torch.tensor(expected), what=f"loss {step}")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parts.model.clipped(), opt.clip_grad)
        close(norm, torch.tensor(data["grad_norm64"][step]), what=f"norm {step}")
        if (step + 1) % count == 0:
            # The rate of the step before, by the number of its last part.
            rate = parts.schedules.learning_rate(step - count + 2)
            assert rate == pytest.approx(data["lr64"][step], rel=1e-12)
            set_hyperparameters(parts.optimizer, learning_rate=rate, weight_decay=opt.weight_decay)
            step_unless(parts.optimizer, torch.zeros(()))
            parts.optimizer.zero_grad()
    check_end(data, parts)
