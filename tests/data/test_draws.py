"""What views look like, against torchvision and statistics recorded from the original."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msn.config.sections.msn import MSNData
from msn.data import draws as columns
from msn.data.draws import Box, Draw, Operation, draw_view, pack
from msn.runtime import keyed
from tests.support.views import data_section

GOLDEN = Path(os.environ.get("MSN_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
PLAIN = data_section(flip=0, color_jitter=0, grayscale=0, blur=0)
SAMPLES = 4000  # of our own draws


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "crops.json").read_text())


def draws(spec: MSNData, scale: tuple[float, float], height: int, width: int) -> list[Draw]:
    return [
        draw_view(keyed.generator(0, keyed.Stream.VIEW, 0, i, 0), height, width, scale, spec)
        for i in range(SAMPLES)
    ]


# --- geometry


def test_golden_crop_geometry(golden: dict[str, Any]) -> None:
    found = re.search(r"H=(\d+), W=(\d+)", golden["_doc"])
    assert found
    height, width = map(int, found.groups())
    for key in [key for key in golden if key.startswith("crop_")]:
        low, high = map(float, key.split("_")[2:])
        boxes = np.array([d.box for d in draws(PLAIN, (low, high), height, width)], dtype=float)
        top, left, h, w = boxes.T
        values = {
            "area": h * w / (height * width),
            "aspect_w_over_h": w / h,
            "log_aspect": np.log(w / h),
            "left_frac": left / width,
            "top_frac": top / height,
            "cx": (left + w / 2) / width,
            "cy": (top + h / 2) / height,
            "height": h,
            "width": w,
            "left_over_slack": (left / np.where(w < width, width - w, np.nan))[w < width],
            "top_over_slack": (top / np.where(h < height, height - h, np.nan))[h < height],
        }
        for name, ours in values.items():
            assert_same_distribution(ours, golden[key][name], f"{key} {name}")
        correlation = np.corrcoef(values["area"], values["log_aspect"])[0, 1]
        assert correlation == pytest.approx(golden[key]["corr_area_logaspect"], abs=0.06)


def assert_same_distribution(ours: np.ndarray, recorded: dict[str, Any], what: str) -> None:
    """The share of our draws below each recorded quantile is that quantile's, to 4.5 sigma."""
    share = 1 / len(ours) + 1 / recorded["n"]
    for name, value in recorded["quantiles"].items():
        p = float(name)
        if p in (0, 1):  # extremes of a sample say little: they must only not be exceeded by much
            continue
        slack = 4.5 * math.sqrt(p * (1 - p) * share) + 1e-3
        near = 1e-6 * max(1, abs(value))  # values are discrete, and rounded in float
        below, upto = (ours < value - near).mean(), (ours <= value + near).mean()
        assert below - slack <= p <= upto + slack, (what, name, value, below, upto)
    slack = 4.5 * recorded["std"] * math.sqrt(share)
    assert ours.mean() == pytest.approx(recorded["mean"], abs=slack), what


@pytest.mark.parametrize(("height", "width"), [(100, 420), (420, 100), (8, 8), (3, 5)])
def test_odd_images_give_the_crops_of_torchvision(height: int, width: int) -> None:
    """Also where hardly any rectangle fits, so that the fallback decides."""
    scale = (0.3, 1.0)
    image = Image.new("L", (width, height))
    ours = np.array([d.box for d in draws(PLAIN, scale, height, width)])
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, scale, [3 / 4, 4 / 3]) for _ in range(1500)]
    )
    for column in range(4):
        values = np.union1d(ours[:, column], theirs[:, column])
        ours_cdf = (ours[:, column, None] <= values).mean(0)
        theirs_cdf = (theirs[:, column, None] <= values).mean(0)
        # Kolmogorov-Smirnov at p = 1e-6
        assert np.abs(ours_cdf - theirs_cdf).max() < 2.7 * math.sqrt(1 / len(ours) + 1 / 1500)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    sample=st.integers(0, 10**6),
)
def test_crops_lie_inside(height: int, width: int, low: float, high: float, sample: int) -> None:
    generator = keyed.generator(0, keyed.Stream.VIEW, 0, sample)
    box = draw_view(generator, height, width, (min(low, high), max(low, high)), PLAIN).box
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_crops_reach_every_corner() -> None:
    boxes = [d.box for d in draws(PLAIN, (0.2, 0.4), 8, 8)]
    assert {(b.top == 0, b.top + b.height == 8) for b in boxes} >= {(True, False), (False, True)}
    assert {(b.left == 0, b.left + b.width == 8) for b in boxes} >= {(True, False), (False, True)}


# --- draws


@pytest.mark.parametrize("name", ["flip", "color_jitter", "grayscale", "blur"])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_probabilities(name: str, p: float) -> None:
    change: dict[str, Any] = {name: p}
    spec = data_section(**change)
    happened = {
        "flip": lambda d: d.flip,
        "color_jitter": lambda d: len(d.jitter) > 0,
        "grayscale": lambda d: d.grayscale,
        "blur": lambda d: d.blur is not None,
    }[name]
    share = np.mean([happened(d) for d in draws(spec, (0.3, 1), 50, 50)])
    assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / SAMPLES)  # exact at 0 and 1


def test_default_probabilities_are_the_official_ones() -> None:
    spec = data_section()
    assert (spec.flip, spec.color_jitter, spec.grayscale, spec.blur) == (0.5, 0.8, 0.2, 0.5)
    assert (spec.rand_crop_scale, spec.focal_crop_scale) == ((0.3, 1.0), (0.05, 0.3))


def test_decisions_are_independent() -> None:
    decided = np.array(
        [
            (d.flip, len(d.jitter) > 0, d.grayscale, d.blur is not None, d.box.top, d.box.left)
            for d in draws(data_section(), (0.3, 0.5), 400, 400)
        ],
        dtype=float,
    )
    correlation = np.corrcoef(decided.T) - np.eye(6)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(SAMPLES)


def numbers_of(draw: Draw) -> list[float]:
    """All that was drawn for a view of 400 x 400 pixels: what, how strongly, where, the order."""
    factors = dict(draw.jitter)
    order = [operation for operation, _ in draw.jitter]
    box, assigned = draw.box, [factors[operation] for operation in Operation]
    places = [order.index(operation) for operation in Operation]
    corner = box.top / (400 - box.height), box.left / (400 - box.width)
    shape = box.height * box.width, box.width / box.height
    assert draw.blur is not None
    return [draw.flip, draw.grayscale, draw.blur, *shape, *corner, *assigned, *places]


def test_no_number_of_a_view_tells_another() -> None:
    drawn = draws(data_section(), (0.1, 0.2), 400, 400)
    both = [draw for draw in drawn if draw.jitter and draw.blur is not None]
    numbers = np.array([numbers_of(draw) for draw in both], dtype=float)
    correlation = np.corrcoef(numbers.T) - np.eye(numbers.shape[1])
    correlation[-4:, -4:] = 0  # places exclude each other
    assert np.abs(correlation).max() < 4.5 / math.sqrt(len(both))
    # A number that decided on the blur, too, would leave half of the radii.
    assert numbers[:, 2].mean() == pytest.approx(1.05, abs=4.5 * 0.55 / math.sqrt(len(both)))


def test_golden_jitter_and_blur_draws(golden: dict[str, Any]) -> None:
    key = next(k for k in golden if k.startswith("color_jitter_"))
    spec = data_section(color_jitter=1, blur=1, color_jitter_strength=float(key.split("_")[-1]))
    all_draws = draws(spec, (0.3, 1), 50, 50)
    for place, operation in enumerate(Operation):
        factors = np.array([f for d in all_draws for o, f in d.jitter if o == operation])
        assert len(factors) == SAMPLES
        name = operation.name.lower()
        assert_same_distribution(factors, golden[key][name], name)
        low, high = golden[key]["ranges"][name]
        assert low <= factors.min() <= factors.max() <= high
        first = np.mean([d.jitter[0][0] == operation for d in all_draws])
        assert first == pytest.approx(golden[key]["first_op_freq"][place], abs=0.035)
    orders = {tuple(o for o, _ in d.jitter) for d in all_draws}
    assert len(orders) == 24
    radii = np.array([d.blur for d in all_draws])
    assert_same_distribution(radii, golden["blur"]["radius"], "blur radius")


def test_strong_jitter_never_turns_negative() -> None:
    spec = data_section(color_jitter=1, color_jitter_strength=2)
    for draw in draws(spec, (0.3, 1), 50, 50)[:500]:
        assert all(
            factor >= 0 for operation, factor in draw.jitter if operation is not Operation.HUE
        )


@pytest.mark.slow
def test_switching_one_off_changes_no_other() -> None:
    full = draws(data_section(), (0.3, 1), 50, 50)[:200]
    for name in ("flip", "color_jitter", "grayscale", "blur"):
        field = "jitter" if name == "color_jitter" else name
        change: dict[str, Any] = {name: 0.0}
        off: Any = {"flip": False, "jitter": (), "grayscale": False, "blur": None}[field]
        without = draws(data_section(**change), (0.3, 1), 50, 50)[:200]
        assert without == [d._replace(**{field: off}) for d in full]


# --- as numbers


def test_a_packed_draw_says_it_all() -> None:
    jitter = ((Operation.HUE, 0.1), (Operation.SATURATION, 0.7), (Operation.BRIGHTNESS, 1.2),
              (Operation.CONTRAST, 0.9))  # fmt: skip
    row = np.array(pack(Draw(Box(1, 2, 3, 4), True, jitter, True, 0.5)))
    assert len(row) == columns.COLUMNS
    assert row[columns.FLIP] == 1
    assert row[columns.OPERATIONS].tolist() == [3, 2, 0, 1]
    assert row[columns.FACTORS].tolist() == [0.1, 0.7, 1.2, 0.9]
    assert row[columns.GRAYSCALE] == 1
    assert row[columns.BLUR] == 0.5


def test_a_packed_draw_of_nothing_changes_nothing() -> None:
    row = np.array(pack(Draw(Box(1, 2, 3, 4), False, (), False, None)))
    assert sorted(row[columns.OPERATIONS]) == list(Operation)
    factors = dict(zip(row[columns.OPERATIONS], row[columns.FACTORS], strict=True))
    assert factors == {0: 1, 1: 1, 2: 1, 3: 0}
    assert (row[columns.FLIP], row[columns.GRAYSCALE], row[columns.BLUR]) == (0, 0, 0)
