"""What a run takes up from a checkpoint is held against the run first."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.runtime.checkpoint import Found
from msn.runtime.errors import UserError
from msn.train.build import Parts
from msn.train.pretraining import run_state
from msn.train.resuming import restore
from msn.train.step import train_step
from tests.support.experiments import batches, tiny_config, tiny_parts

State = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, State]:
    """A run after one step, and what it saves."""
    folder = tmp_path_factory.mktemp("run")
    parts = tiny_parts(folder)
    train_step(parts, batches(parts, 32, 1)[0], 0)
    return parts, copy.deepcopy(run_state(tiny_config(folder), parts, 1.0, 1))


def put(*keys: Any, value: Any) -> Callable[[State], None]:
    """A change of a nested value."""

    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def scale(*keys: Any, by: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys:
            state = state[key]
        state.mul_(by)  # type: ignore[attr-defined]

    return change


MOMENTS = ("opt", "state", 0)
GROUP = ("opt", "param_groups", 0)
DEEP: dict[str, Any] = {}
DEEP["deeper"] = DEEP
WRONG: list[tuple[Callable[[State], None], str]] = [
    (put(*MOMENTS, "exp_avg", value=torch.zeros(3)), "exp_avg of parameter 0 is (3,) and must be"),
    (put(*MOMENTS, "exp_avg", value=torch.zeros(0)), "exp_avg of parameter 0 is (0,) and must be"),
    (put(*MOMENTS, "exp_avg", value="x"), "exp_avg of parameter 0 is 'x' and must be a tensor"),
    (scale(*MOMENTS, "exp_avg", by=torch.nan), "exp_avg of parameter 0 is not finite"),
    (put(*MOMENTS, "exp_avg_sq", value=-torch.ones(1, 1, 16)), "exp_avg_sq of parameter 0 is neg"),
    (put(*MOMENTS, "step", value=torch.tensor(torch.inf)), "step of parameter 0 is not finite"),
    (put(*MOMENTS, "step", value=torch.ones(2)), "step of parameter 0 is (2,) and must be ()"),
    (put(*MOMENTS, "step", value=torch.tensor(1)), "step of parameter 0 is torch.int64 and must"),
    (drop(*MOMENTS, "exp_avg_sq"), "parameter 0 has not the moments step, exp_avg, exp_avg_sq"),
    (put(*MOMENTS, value={}), "parameter 0 has not the moments"),
    (put("opt", "state", value={}), "parameter 0 has not the moments"),
    (put("opt", "state", 99, value={}), "moments of 99, which is no parameter"),
    (put("opt", "state", "x", value={}), "moments of 'x', which is no parameter"),
    (put("opt", "state", value=[]), "'opt' is not the state of an optimizer"),
    (put("opt", value=7), "'opt' is not the state of an optimizer"),
    (put(*GROUP, "betas", value=("x", None)), "betas of group 0 is ('x', None), not such as"),
    (put(*GROUP, "betas", value=0.9), "betas of group 0 is 0.9, not such as"),
    (put(*GROUP, "eps", value=torch.nan), "eps of group 0 is nan, not such as 1e-08"),
    (put(*GROUP, "params", value=[torch.zeros(2)]), "it has other parameter groups"),
    (put("opt", "param_groups", value=[7]), "it has other parameter groups"),
    (put("step", value="x"), "'step' is 'x' and must be a whole number from 0"),
    (put("step", value=-1), "'step' is -1 and must be"),
    (put("step", value=10**400), "and must be a whole number from 0"),
    (put("step", value=True), "'step' is True"),
    (put("steps_per_epoch", value=0), "'steps_per_epoch' is 0 and must be a whole number from 1"),
    (put("world_size", value=[1]), "'world_size' is [1]"),
    (put("batch_size", value=None), "'batch_size' is None"),
    (drop("batch_size"), "'batch_size' is None"),
    (put("config", value="x"), "'config' is 'x' and must map names to values"),
    (put("config", value={1: 2, "a": 3}), "'config' is {1: 2, 'a': 3} and must map"),
    (put("config", "data", value=torch.zeros(2)), "must map names to values"),
    (put("config", value=DEEP), "must map names to values"),
    (scale("encoder", "cls_token", by=torch.inf), "'encoder' cannot be used: cls_token is not fin"),
    (put("target_encoder", "cls_token", value=torch.ones(1, 1, 16) > 0), "cls_token is torch.bool"),
    (put("encoder", value={7: torch.zeros(1)}), "'encoder' is not a state dict"),
    (scale("prototypes", by=torch.nan), "'prototypes' cannot be used: is not finite"),
    (put("prototypes", value="x"), "'prototypes' cannot be used: is 'x' and must be a tensor"),
]  # fmt: skip


def test_what_a_run_cannot_go_on_from_is_named(saved: tuple[Parts, State], tmp_path: Path) -> None:
    parts, state = saved
    for change, message in WRONG:
        wrong = copy.deepcopy(state)
        change(wrong)
        with pytest.raises(UserError) as error:
            restore(tiny_config(tmp_path), parts, Found(tmp_path / "x.pth.tar", wrong))
        assert str(error.value).startswith(f"{tmp_path / 'x.pth.tar'}: "), message
        assert message in str(error.value)
        assert len(str(error.value)) < 1000
        assert "\n" not in str(error.value)


def test_moments_get_memory_of_their_own(saved: tuple[Parts, State], tmp_path: Path) -> None:
    """A fused optimizer would write all numbers of this one to the same place."""
    parts, state = saved
    given = copy.deepcopy(state)
    moments = given["opt"]["state"][0]
    moments["exp_avg"] = torch.ones(1).expand(moments["exp_avg"].shape)
    given["opt"]["param_groups"][0]["betas"] = (0.1, 0.2)
    step, _ = restore(tiny_config(tmp_path), parts, Found(tmp_path / "x.pth.tar", given))
    assert step == 1
    first = parts.optimizer.param_groups[0]["params"][0]
    taken = parts.optimizer.state[first]["exp_avg"]
    assert taken.stride() == first.stride()
    taken[..., 0] = 5
    assert taken.sum() == 5 + taken.numel() - 1
    # The settings are those of the run.
    assert parts.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
