"""The shipped SimMIM configs: published settings, and plans that can be made."""

from pathlib import Path

import pytest

from msn.config.kinds import SimMIMConfig
from msn.config.load import load_config
from msn.methods.simmim import SimMIM

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*simmim*.yaml")
    if path.parent.name != "eval"
)


def read(name: str) -> SimMIMConfig:
    config = load_config(CONFIGS / name)
    assert isinstance(config, SimMIMConfig)
    return config


def test_they_are_all_there() -> None:
    assert len(NAMES) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_plans(name: str) -> None:
    config = read(name)
    assert not config.notices()
    channels = 3 if name.startswith("pretrain/simmim") else 1
    facts = dict(SimMIM.plan(config, channels, 20))
    assert facts["mask"].startswith(("30 of 49 squares", "10 of 16 squares"))
    assert SimMIM.cost(config, channels, bf16=False).flops > 0


@pytest.mark.parametrize(
    ("name", "peak", "last"),
    [("simmim_vitb16", 4e-4, 4e-5), ("simmim_resnet50", 8e-4, 1e-5)],
)
def test_rates_at_2048_images(name: str, peak: float, last: float) -> None:
    config, steps = read(f"pretrain/{name}.yaml"), 625
    rate = SimMIM.schedules(config, steps, 2048).learning_rate
    rates = [rate(step) for step in range(0, steps * config.optimization.epochs, 100)]
    # A cosine counts the warm-up as time gone, and never reaches the peak.
    assert 0.99 * peak < max(rates) <= peak * (1 + 1e-12)
    assert rate(steps * config.optimization.epochs) == pytest.approx(last, rel=1e-3)
