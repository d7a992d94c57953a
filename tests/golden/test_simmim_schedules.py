"""SimMIM's learning rate at every step."""

from typing import Any

import pytest

from msn.config.sections.simmim import SimMIMOptimization
from msn.methods.schedules import simmim_rate
from tests.golden.simmim_models import golden

SETTINGS: dict[str, Any] = golden("schedules.npz").meta["settings"]


def optimization_of(settings: dict[str, Any], **other: Any) -> SimMIMOptimization:
    names = {
        "EPOCHS": "epochs",
        "WARMUP_EPOCHS": "warmup",
        "BASE_LR": "lr",
        "WARMUP_LR": "start_lr",
        "MIN_LR": "final_lr",
        "NAME": "schedule",
        "GAMMA": "gamma",
        "MULTISTEPS": "milestones",
    }
    given = {names[key]: value for key, value in settings.items() if key in names}
    return SimMIMOptimization(**given, **other)


@pytest.mark.parametrize("name", SETTINGS)
def test_learning_rates(name: str) -> None:
    settings = SETTINGS[name]
    rate = simmim_rate(optimization_of(settings), settings["n_iter_per_epoch"])
    own = [rate(step + 1) for step in range(len(golden("schedules.npz")[name]))]
    assert own == pytest.approx(golden("schedules.npz")[name].tolist(), rel=1e-12, abs=0)
