"""The optimizer and the classifier of the linear evaluation."""

import ast
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from msn.methods.optim import MomentumSGD
from msn.methods.schedules import cosine
from msn.models.linear import LinearHead
from tests.golden.record import DTYPES, Golden, assert_close, golden, golden_files

RUNS = golden_files("sgd_*.npz")


def test_the_runs_are_there() -> None:
    assert len(RUNS) == 4


def settings(record: Golden) -> dict[str, Any]:
    """Of a recorded run, as its description tells them: `SGD({'momentum': ...}, ...)`."""
    found = re.search(r"SGD\((\{.*?\})", record.meta["description"])
    assert found
    return dict(ast.literal_eval(found[1]))


@DTYPES
@pytest.mark.parametrize("name", RUNS)
def test_sgd(name: str, dtype: torch.dtype) -> None:
    record, float64 = golden(name), dtype == torch.float64
    suffix = "64" if float64 else ""
    x, y = record.tensor("X", dtype), record.tensor("Y", dtype)
    layer = nn.Linear(x.shape[1], y.shape[1]).to(dtype)
    layer.load_state_dict({"weight": record.tensor("W0"), "bias": record.tensor("b0")})
    chosen = settings(record)
    decayed = {"params": [layer.weight], "weight_decay": chosen.pop("weight_decay", 0.0)}
    optimizer = MomentumSGD([decayed, {"params": [layer.bias]}], **chosen)
    tolerance = record.meta["maxabs_f32_vs_f64"]
    for step, rate in enumerate(record["lr"]):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        loss = 0.5 * (layer(x) - y).square().sum() / len(x)
        loss.backward()
        assert_close(loss, record["loss64"][step], float64=float64, what="loss")
        optimizer.step()
        for key, value in (("W", layer.weight), ("b", layer.bias)):
            expected = record[key + suffix][step]
            assert_close(value, expected, float64=float64, tolerance=tolerance[key], what=key)
        if "bufW" in record:
            steps = optimizer.state[layer.weight]["steps"]
            assert_close(steps, record["bufW" + suffix][step], float64=float64, tolerance=1e-7)


def test_gradients_are_left_alone() -> None:
    """The official optimizer overwrites them where there is no weight decay."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = MomentumSGD([{"params": [weight], "lr": 0.2}])
    weight.sum().backward()
    optimizer.step()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(3))


@DTYPES
@pytest.mark.parametrize("normalize", [False, True])
def test_classifier(normalize: bool, dtype: torch.dtype) -> None:
    record: Golden = golden("lineareval.npz")
    float64, prefix = dtype == torch.float64, f"norm{int(normalize)}."
    x, y = record.tensor("x", dtype), record.tensor("y")
    start = record.tensors(prefix + "init.")
    head = LinearHead(x.shape[2], len(start["linear.bias"]), normalize=normalize).to(dtype)
    head.load_state_dict(start)
    assert_close(head(x[0]), record[prefix + "out64"], float64=float64)

    weight = head.linear.weight
    others = [parameter for parameter in head.parameters() if parameter is not weight]
    optimizer = MomentumSGD([{"params": [weight], "weight_decay": 0.01}, {"params": others}])
    for step, (images, labels) in enumerate(zip(x, y, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, total=len(x), start=0.8, final=0.0)
        loss = F.cross_entropy(head(images), labels)
        losses = record[prefix + "loss64"]
        assert_close(loss, losses[step], float64=float64, tolerance=1e-7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in head.state_dict().items():
        expected = record[f"{prefix}final64.{name}"]
        natural = float(abs(record[f"{prefix}final.{name}"] - expected).max())
        assert_close(value, expected, float64=float64, tolerance=natural, what=name)
