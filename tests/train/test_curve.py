"""The loss of thirty steps, committed at full precision: a change that moves it needs a reason.

Everything that libraries may change between versions is kept out: weights and views come from
keyed numpy draws, the arithmetic is double precision. To accept a new curve, and say why in the
commit:

    python -m tests.train.test_curve
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msn.data.batch import Views
from msn.methods.msn.model import MSN, views_of
from msn.methods.optim import build_optimizer
from msn.methods.schedules import msn_schedules
from msn.runtime import keyed
from msn.train.build import Parts, build_model, build_parts
from msn.train.step import train_step
from tests.support.experiments import tiny_config

CURVE = Path(__file__).parents[1] / "reference" / "curve.json"
STEPS = 30
IMAGES = 16


def fixed_parts() -> Parts:
    """The tiny model in double precision, its weights drawn by numpy."""
    config = tiny_config(Path("unused"), criterion__batch_size=IMAGES)
    schedules = msn_schedules(config.optimization, steps_per_epoch=STEPS)
    model = build_model(MSN, config, 1, STEPS).double()
    assert isinstance(model, MSN)
    draw = keyed.generator(0, keyed.Stream.INIT)
    for encoder in (model.anchor, model.target):
        draw = keyed.generator(0, keyed.Stream.INIT)
        for name, parameter in encoder.named_parameters():
            values = torch.from_numpy(draw.normal(0, 0.2, parameter.shape))
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.data = 1 + 0.1 * values if is_scale else values
    model.prototypes.data = torch.from_numpy(draw.normal(0, 0.3, model.prototypes.shape))
    optimizer = build_optimizer(model.parameter_groups())
    parts = build_parts(config, torch.device("cpu"))
    return replace(parts, model=model, replica=model, optimizer=optimizer, schedules=schedules)


def fixed_views(step: int) -> Views:
    draw = keyed.generator(0, keyed.Stream.VIEW, step)
    shapes = ((IMAGES, 1, 8, 8), (1, IMAGES, 1, 8, 8), (2, IMAGES, 1, 6, 6))
    return views_of(*(torch.from_numpy(draw.normal(0, 1, shape)) for shape in shapes))


def curve() -> list[float]:
    parts = fixed_parts()
    return [
        float(train_step(parts, fixed_views(step), step).output.loss.detach())
        for step in range(STEPS)
    ]


def test_the_committed_curve() -> None:
    expected = json.loads(CURVE.read_text("utf-8"))
    assert curve() == pytest.approx(expected, rel=1e-9)
    assert expected[-1] < expected[0]


if __name__ == "__main__":
    CURVE.write_text(json.dumps(curve(), indent=1) + "\n", encoding="utf-8")
