"""What linear evaluation and fine-tuning take up from a checkpoint of theirs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.runtime import checkpoint
from msn.runtime.checkpoint import Found
from msn.runtime.errors import UserError
from msn.train.learning import linear_evaluation
from msn.train.saving import copied
from tests.evaluation.test_finetune import learner
from tests.evaluation.test_linear import config, latest
from tests.support.labeled import CPU

HEAD = "heads.0.linear.weight"
NAN = torch.full((10, 48), torch.nan)
WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda state: state.update(step="x"), "'step' is 'x' and must be a whole number from 0"),
    (lambda state: state.update(steps_per_epoch=[]), "'steps_per_epoch' is []"),
    (lambda state: state.update(config=3), "'config' is 3 and must map names to values"),
    (lambda state: state.update(classifiers=None), "holds the classifiers None"),
    (lambda state: state.pop("classifiers"), "holds the classifiers None"),
    (lambda state: state.update(accuracy=[]), "'accuracy' holds other scores than the 1 for each"),
    (lambda state: state.update(accuracy=[["x"]]), "'accuracy' holds other scores"),
    (lambda state: state.update(accuracy=[[(math.nan, 5)]]), "scores that are not from 0 to 100 %"),
    (lambda state: state.pop("opt"), "'opt' is not the state of an optimizer"),
    (lambda state: state["opt"]["state"].clear(), "parameter 0 has not the moments steps"),
    (
        lambda state: state["opt"]["state"][0].update(steps=torch.zeros(3)),
        "steps of parameter 0 is (3,) and must be (10, 48)",
    ),
    (lambda state: state["opt"]["state"][0].update(steps=NAN), "steps of parameter 0 is not finit"),
    (lambda state: state["opt"]["param_groups"][0].update(peak="x"), "peak of group 0 is 'x', not"),
    (lambda state: state["classifier"].update({HEAD: NAN}), f"{HEAD} is not finite"),
]


@pytest.mark.slow
def test_linear_evaluation_goes_on_from_nothing_else(weights: Path, tmp_path: Path) -> None:
    chosen = config(weights, tmp_path, optimization__epochs=1)
    result = linear_evaluation(chosen, CPU)
    path = tmp_path / "run-latest.pth.tar"
    for change, message in WRONG:
        state = latest(tmp_path, "best")
        change(state)
        checkpoint.save(path, state)
        with pytest.raises(UserError) as error:
            linear_evaluation(chosen, CPU)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)
    path.write_bytes(path.read_bytes()[:-50])
    assert linear_evaluation(chosen, CPU) == result  # from the file before it, the best
    assert path.with_name("run-latest.pth.tar.damaged").exists()


def test_one_classifier_that_diverged_does_not_keep_the_others_from_going_on(
    weights: Path, tmp_path: Path
) -> None:
    chosen = config(weights, tmp_path, optimization__epochs=1, optimization__lr=[2.0, 3.0])
    linear_evaluation(chosen, CPU)
    path, state = tmp_path / "run-latest.pth.tar", latest(tmp_path)
    for index, head in enumerate(("heads.0", "heads.1")):
        state["classifier"][f"{head}.linear.weight"] = NAN
        state["opt"]["state"][2 * index]["steps"] = NAN
        checkpoint.save(path, state)
        if index == 0:
            linear_evaluation(chosen, CPU)
    with pytest.raises(UserError, match="'classifier' cannot be used: not one of them is finite"):
        linear_evaluation(chosen, CPU)


def test_fine_tuning_goes_on_from_nothing_else(weights: Path, tmp_path: Path) -> None:
    tuned = learner(weights, tmp_path)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    tuned.train_step(images, labels, 0)
    for moments, weight, message in (
        ({"exp_avg": torch.zeros(3)}, 1.0, "exp_avg of parameter 0 is (3,) and must be"),
        ({"step": None}, 1.0, "step of parameter 0 is None and must be a tensor"),
        ({}, torch.inf, "'classifier' cannot be used: head.bias is not finite"),
    ):
        state = copied(tuned.state())
        state["opt"]["state"][0].update(moments)
        state["classifier"]["head.bias"] *= weight
        with pytest.raises(UserError) as error:
            tuned.load_state(Found(tmp_path / "x.pth.tar", state))
        assert message in str(error.value)
