"""The shipped MAE configs: published settings, and plans that can be made."""

from pathlib import Path

import pytest

from msn.config.kinds import MAEConfig
from msn.config.load import load_config
from msn.methods.mae import MAE

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*mae*.yaml")
    if path.parent.name != "eval"
)
# Tokens kept and masked, parameters of encoder and of both halves: official code.
PUBLISHED = {
    "mae_vitb16": (49, 147, 85_798_656, 111_907_840),
    "mae_vitl16": (49, 147, 303_301_632, 329_541_888),
    "mae_vith14": (64, 192, 630_764_800, 657_074_508),
}


def read(name: str) -> MAEConfig:
    config = load_config(CONFIGS / name)
    assert isinstance(config, MAEConfig)
    assert not config.notices()
    return config


def test_they_are_all_there() -> None:
    assert [Path(name).stem for name in NAMES] == [
        *("digits_mae", "fashion_mnist_mae"),
        *sorted(PUBLISHED),
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_the_official_code(name: str) -> None:
    config = read(f"pretrain/{name}.yaml")
    kept, masked, encoder, both = PUBLISHED[name]
    facts = dict(MAE.plan(config, 3, 20))
    assert facts["image"].endswith(f"{kept} kept, {masked} masked")
    assert facts["parameters"] == f"encoder {encoder:,}, decoder {both - encoder:,}"
    assert config.optimization.epochs == 800
    assert (config.optimization.weight_decay, config.optimization.clip_grad) == (0.05, None)
    steps = 312  # of 4096 images
    rate = MAE.schedules(config, steps, 4096).learning_rate  # read at the step that comes next
    assert rate(1) == 0
    assert rate(1 + 40 * steps) == pytest.approx(2.4e-3, rel=1e-12)
    assert rate(1 + 420 * steps) == pytest.approx(1.2e-3, rel=1e-12)
    assert rate(1 + 800 * steps) == pytest.approx(0, abs=1e-12)


def test_the_cost_of_an_image() -> None:
    """Matrix products counted by hand."""
    config = read("digits_mae.yaml")

    def blocks(depth: int, tokens: int, width: int, hidden: int) -> int:
        products = 2 * tokens * width * (4 * width + 2 * hidden)
        return depth * (products + 2 * 2 * tokens**2 * width)

    patches, kept, values, width, narrow = 16, 4, 16, 64, 32
    pixels = 2 * patches * values * width
    encoder = blocks(4, 1 + kept, width, 2 * width)
    ends = 2 * (1 + kept) * width * narrow + 2 * patches * narrow * values
    decoder = blocks(2, 1 + patches, narrow, 4 * narrow)
    # A backward pass is two products for each of the forward pass, but for the image's gradient.
    expected = 3 * (pixels + encoder + ends + decoder) - pixels
    cost = MAE.cost(config, 1, bf16=False)
    assert cost.flops == pytest.approx(expected, rel=1e-9)
    held = 4 * 5 * (8 * 64 + 4 * (4 * 64 + 128)) + 2 * 17 * (8 * 32 + 4 * (4 * 32 + 128))
    assert cost.activation_bytes == held
