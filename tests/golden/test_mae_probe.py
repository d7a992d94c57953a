"""MAE's linear probe: its optimizer, six whole steps, its rates and its crops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from msn.config.sections.data import Augmentation
from msn.data.draws import draw_view
from msn.evaluation.linear import LinearLearner, Training
from msn.methods.optim import LARS
from msn.models.linear import HeadSettings
from msn.runtime import keyed
from tests.golden.mae_models import encoder_of, golden, split
from tests.golden.record import DTYPES, assert_close, golden_json
from tests.golden.record import MAE as FOLDER

SETTINGS: dict[str, Any] = golden("lars.npz").meta["settings"]


@DTYPES
@pytest.mark.parametrize("case", SETTINGS)
def test_lars(case: str, dtype: torch.dtype) -> None:
    data, settings = golden("lars.npz"), SETTINGS[case]
    names = data.names(f"p0.{case}.")
    parameters = {name: nn.Parameter(data.tensor(f"p0.{case}.{name}", dtype)) for name in names}
    optimizer = LARS(
        [{"params": [*parameters.values()], "weight_decay": settings["weight_decay"]}],
        momentum=settings["momentum"],
        trust=settings["trust_coefficient"],
    )
    for step, rate in enumerate(data[f"lr.{case}"]):
        optimizer.param_groups[0]["lr"] = float(rate)
        for name, parameter in parameters.items():
            parameter.grad = data.tensor(f"grad.{case}.{name}", dtype)[step]
        optimizer.step()
        for name, parameter in parameters.items():
            limit = data.meta["maxabs_f32_vs_f64"][f"p.{case}.{name}"][0]
            expected = data[f"p64.{case}.{name}"][step]
            float64 = dtype == torch.float64
            assert_close(parameter, expected, float64=float64, tolerance=limit, what=name)
    for name, parameter in parameters.items():  # gradients are left alone
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, data.tensor(f"grad.{case}.{name}", dtype)[-1])


@DTYPES
def test_six_steps(dtype: torch.dtype) -> None:
    data, float64 = golden("linprobe.npz"), dtype == torch.float64
    config, limits = data.meta["config"], data.meta["maxabs_f32_vs_f64"]
    encoder = encoder_of(config)
    encoder.load_state_dict(split(golden("forward.npz").tensors("sd."))[0])
    training = Training(
        config["epochs"] * config["iterations_per_epoch"],
        config["warmup_epochs"] * config["iterations_per_epoch"],
        "mae",
        weight_decay=config["weight_decay"],
    )
    learner = LinearLearner(
        encoder.to(dtype),
        [HeadSettings(config["lr"], 1)],
        training,
        classes=config["num_classes"],
        bf16=False,
    )
    learner.heads.to(dtype)
    assert isinstance(learner.optimizer, LARS)
    assert (learner.optimizer.momentum, learner.optimizer.trust) == (
        config["momentum"],
        config["trust_coefficient"],
    )
    (head,) = learner.heads.heads
    head.linear.weight.data.copy_(data.tensor("head_weight_init"))
    images, labels = data.tensor("imgs", dtype), data.tensor("labels")
    for step, expected in enumerate(data["lr"]):
        loss = learner.train_step(images[step], labels[step], step)[0]
        for group in learner.optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected, rel=1e-12, abs=1e-18)
        for name, own in {
            "features": learner.features(images[step]),
            "loss": loss,
            "weight_after": head.linear.weight,
            "bias_after": head.linear.bias,
            "mu_weight_after": learner.optimizer.state[head.linear.weight]["momentum"],
            "running_mean_after": head.norm.running_mean,
            "running_var_after": head.norm.running_var,
        }.items():
            what = f"{name} of step {step}"
            truth, limit = data.tensor(f"{name}64")[step], limits[name][0]
            assert_close(own, truth, float64=float64, tolerance=limit, what=what)
    logits = learner.logits(data.tensor("imgs_eval", dtype))[0]
    limit = limits["logits_eval"][0]
    assert_close(logits, data["logits_eval64"], float64=float64, tolerance=limit)


RATES = golden("lr_sched.npz")


@pytest.mark.parametrize("recipe", [name for name in RATES.meta["config"] if "linprobe" in name])
def test_rates(recipe: str) -> None:
    config = RATES.meta["config"][recipe]
    assert config["min_lr"] == 0
    length = config["iterations_per_epoch"]
    training = Training(config["epochs"] * length, config["warmup_epochs"] * length, "mae")
    encoder = encoder_of(golden("linprobe.npz").meta["config"])
    settings = [HeadSettings(config["lr"], 1)]
    learner = LinearLearner(encoder, settings, training, classes=2, bf16=False)
    own = [learner.learning_rate(step) for step in RATES[f"iteration.{recipe}"].tolist()]
    assert own == pytest.approx(RATES[f"lr.{recipe}"].tolist(), rel=1e-9, abs=1e-18)


CROPS: dict[str, Any] = golden_json("crops.json", FOLDER)
DRAWN = 4000


@pytest.mark.parametrize("case", CROPS)
def test_crops(case: str) -> None:
    """The boxes of pre-training, and those of the probe, which are cut to the image."""
    kind, size = case.split(".")
    width, height = map(int, size.split("x"))
    record, spec = CROPS[case], Augmentation()
    boxes = np.array(
        [
            draw_view(
                keyed.generator(0, keyed.Stream.VIEW, 0, sample),
                height,
                width,
                tuple(record["scale"]),
                spec,
                clamp="linprobe" in kind,
            ).box
            for sample in range(DRAWN)
        ],
        dtype=float,
    )
    top, left, h, w = boxes.T
    count = 1 / DRAWN + 1 / record["n"]
    values = {"area": h * w / (height * width), "aspect": w / h, "x": left / width}
    values["y"] = top / height
    for name, own in values.items():
        for p, quantile in zip(record["q"], record[f"{name}_q"], strict=True):
            slack = 4.5 * math.sqrt(p * (1 - p) * count) + 1e-3
            below, upto = (own < quantile - 1e-6).mean(), (own <= quantile + 1e-6).mean()
            assert below - slack <= p <= upto + slack, (name, p, quantile, below, upto)
    for name, share in {
        "full_height": (h == height).mean(),
        "full_width": (w == width).mean(),
    }.items():
        p = record[name]
        assert share == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) * count) + 1e-3), name
    for name in ("area", "aspect"):
        slack = 4.5 * record[f"{name}_std"] * math.sqrt(count)
        assert values[name].mean() == pytest.approx(record[f"{name}_mean"], abs=slack), name
    for name, centers in {"x": (left + w / 2) / width, "y": (top + h / 2) / height}.items():
        slack = 4.5 * float(centers.std()) * math.sqrt(count)
        assert centers.mean() == pytest.approx(record[f"centre_{name}"], abs=slack)
