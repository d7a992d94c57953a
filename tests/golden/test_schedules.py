"""Every schedule, at every recorded step."""

from typing import Any

import pytest

from msn.config.kinds import MSNConfig
from msn.methods.msn.build import momentum_schedule, sharpening_schedule
from msn.methods.schedules import Schedule, cosine, msn_schedules
from tests.golden.record import golden_json

RECORDS: dict[str, Any] = {
    name: record for name, record in golden_json("schedules.json").items() if name != "_doc"
}
EVERY_STEP = [name for name, record in RECORDS.items() if "params" in record]


def config(params: dict[str, Any]) -> MSNConfig:
    optimization = {
        key: params[key]
        for key in ("warmup", "start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay")
    }
    return MSNConfig.model_validate(
        {
            "data": {"source": "digits"},
            "logging": {"folder": "runs"},
            "criterion": {key: params[key] for key in ("start_sharpen", "final_sharpen")},
            "optimization": {"epochs": params["epochs"], **optimization},
        }
    )


def own_schedules(params: dict[str, Any], steps: int) -> tuple[Schedule, Schedule]:
    """Momentum and sharpening."""
    return momentum_schedule(config(params), steps), sharpening_schedule(config(params), steps)


@pytest.mark.parametrize("name", EVERY_STEP)
def test_every_step(name: str) -> None:
    record = RECORDS[name]
    schedules = msn_schedules(config(record["params"]).optimization, record["params"]["ipe"])
    horizon = record["T_max"]
    for step, (rate, decay) in enumerate(zip(record["lr"], record["wd"], strict=True)):
        if step + 1 <= horizon:  # past it the official values turn back; ours stay, see below
            assert schedules.learning_rate(step + 1) == pytest.approx(rate, rel=1e-12)
            assert schedules.weight_decay(step + 1) == pytest.approx(decay, rel=1e-12)
    momentum_of, sharpening_of = own_schedules(record["params"], record["params"]["ipe"])
    for step, (momentum, sharpening) in enumerate(
        zip(record["momentum"], record["sharpen"], strict=True)
    ):
        assert momentum_of(step) == pytest.approx(momentum, rel=1e-12)
        assert sharpening_of(step) == pytest.approx(sharpening, rel=1e-12)


@pytest.mark.parametrize("name", EVERY_STEP)
def test_clamped_past_the_end(name: str) -> None:
    params, horizon = RECORDS[name]["params"], RECORDS[name]["T_max"]
    schedules = msn_schedules(config(params).optimization, params["ipe"])
    momentum_of, sharpening_of = own_schedules(params, params["ipe"])
    for step in (horizon + 1, horizon + 7, 10 * horizon):
        assert schedules.learning_rate(step) == pytest.approx(params["final_lr"], abs=1e-15)
        assert schedules.weight_decay(step) == pytest.approx(params["final_weight_decay"])
        assert momentum_of(step) == 1.0
        assert sharpening_of(step) == pytest.approx(params["final_sharpen"])


def test_the_real_run() -> None:
    for record in RECORDS.values():
        if "iteration" not in record:
            continue
        defaults = {"start_lr": 2e-4, "lr": 1e-3, "final_lr": 1e-6, "weight_decay": 0.04}
        sharpen = {"final_weight_decay": 0.4, "start_sharpen": 0.25, "final_sharpen": 0.25}
        params = {**defaults, **sharpen, "epochs": record["epochs"], "warmup": record["warmup"]}
        schedules = msn_schedules(config(params).optimization, record["ipe"])
        momentum_of, _ = own_schedules(params, record["ipe"])
        for i, step in enumerate(record["iteration"]):
            assert schedules.learning_rate(step + 1) == pytest.approx(record["lr"][i], rel=1e-12)
            assert schedules.weight_decay(step + 1) == pytest.approx(record["wd"][i], rel=1e-12)
            assert momentum_of(step) == pytest.approx(record["momentum"][i], rel=1e-12)


def test_linear_evaluation() -> None:
    record = RECORDS["lineareval"]
    steps = record["epochs"] * record["ipe"]
    for step, rate in enumerate(record["lr_used_per_step"]):
        own = cosine(step, total=steps, start=record["ref_lr"], final=0.0)
        assert own == pytest.approx(rate, rel=1e-12, abs=1e-15)
