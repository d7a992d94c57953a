"""Views against torchvision's PIL pipeline and against statistics recorded from the original."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torchvision.transforms as T
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from msn import keyed
from msn.data import views
from msn.data.views import Box, Draw, ViewSpec, draw_view, eval_view, make_views, render

GOLDEN = Path(os.environ.get("MSN_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
PLAIN = ViewSpec(flip=0, color_jitter=0, grayscale=0, blur=0)
SAMPLES = 4000  # of our own draws


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "crops.json").read_text())


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return load_sample_images().images  # the two images of the recorded statistics


@pytest.fixture(scope="module")
def small(photos: list[np.ndarray]) -> list[np.ndarray]:
    """Two photographs and noise, the worst case, all 64 x 72."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    return [*(cv2.resize(p, (72, 64), interpolation=cv2.INTER_AREA) for p in photos), noise]


def draws(spec: ViewSpec, scale: tuple[float, float], height: int, width: int) -> list[Draw]:
    return [
        draw_view(keyed.generator(0, keyed.Stream.VIEW, 0, i, 0), height, width, scale, spec)
        for i in range(SAMPLES)
    ]


# --- pixel operations. Tolerances in grey levels: (mean, 99th percentile, largest) difference.


def pil(operation: Callable[[Image.Image], Image.Image]) -> Callable[[np.ndarray], np.ndarray]:
    def on_array(image: np.ndarray) -> np.ndarray:
        return np.asarray(operation(Image.fromarray(image)))

    return on_array


def assert_near(ours: np.ndarray, theirs: np.ndarray, mean: float, p99: float, top: float) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    found = (difference.mean(), np.percentile(difference, 99), difference.max())
    assert found[0] <= mean, found
    assert found[1] <= p99, found
    assert found[2] <= top, found


OPERATIONS = {
    "brightness": (views.brightness, F.adjust_brightness, [0.2, 0.6, 1.0, 1.37, 2], (0, 0, 0)),
    "contrast": (views.contrast, F.adjust_contrast, [0.2, 0.6, 1.0, 1.37, 2], (0.1, 1, 1)),
    "saturation": (views.saturation, F.adjust_saturation, [0.2, 0.6, 1.0, 1.37], (0.1, 1, 2)),
    # Both sides work on eight-bit hue and saturation, rounded in different ways.
    "hue": (views.hue, F.adjust_hue, [-0.1, -0.03, 0.0, 0.05, 0.1, 0.4], (1.2, 9, 16)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_jitter_operations_are_those_of_torchvision(name: str, small: list[np.ndarray]) -> None:
    ours, theirs, factors, tolerance = OPERATIONS[name]
    for image in small:
        for factor in factors:
            expected = pil(lambda im, f=factor: theirs(im, f))(image)  # type: ignore[misc]
            assert_near(ours(image, factor), expected, *tolerance)
            if name in ("brightness", "contrast"):
                grey = image[..., 0].copy()
                expected = pil(lambda im, f=factor: theirs(im, f))(grey)  # type: ignore[misc]
                assert_near(ours(grey, factor), expected, *tolerance)


def test_grayscale_is_that_of_torchvision(small: list[np.ndarray]) -> None:
    for image in small:
        expected = pil(lambda im: F.to_grayscale(im, 3))(image)
        assert_near(views.grayscale(image), expected, 0.01, 0, 1)


@pytest.mark.parametrize("radius", [0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.0])
def test_blur_is_that_of_pil(radius: float, small: list[np.ndarray]) -> None:
    blur = pil(lambda im: im.filter(ImageFilter.GaussianBlur(radius)))
    for image in small:
        for pixels in (image, image[..., 0].copy()):
            ours, theirs = views.gaussian_blur(pixels, radius), blur(pixels)
            assert_near(ours[6:-6, 6:-6], theirs[6:-6, 6:-6], 1.1, 3, 3)
            assert_near(ours, theirs, 1.1, 5, 24)  # the border is made up in another way


def test_blur_has_the_spread_asked_for() -> None:
    point = np.zeros((41, 41), np.uint8)
    point[20] = 255  # a line: its cross-section is the kernel
    for radius in (0.5, 1.0, 2.0):
        profile = views.gaussian_blur(point, radius)[:, 20].astype(float)
        offsets = np.arange(41) - 20
        spread = math.sqrt((profile * offsets**2).sum() / profile.sum())
        assert spread == pytest.approx(radius, rel=0.05)


@pytest.mark.parametrize("size", [(30, 30), (40, 50), (64, 64), (72, 80), (96, 128), (20, 100)])
def test_resize_is_that_of_pil(size: tuple[int, int], small: list[np.ndarray]) -> None:
    resize = pil(lambda im: im.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    for image in small:
        for pixels in (image, image[..., 0].copy(), image[3:, 5:-7]):
            assert_near(views.resize(pixels, *size), resize(pixels), 0.25, 1, 1)


def test_colour_operations_leave_grey_images_alone(small: list[np.ndarray]) -> None:
    grey = small[0][..., 0].copy()
    for result in (views.saturation(grey, 0.3), views.hue(grey, 0.1), views.grayscale(grey)):
        np.testing.assert_array_equal(result, grey)


def test_render_applies_all_in_the_order_of_the_original(photos: list[np.ndarray]) -> None:
    """Crop, resize, flip, jitter in its order, grayscale, blur: against the same steps in PIL."""
    box = Box(top=40, left=100, height=200, width=260)
    factors = {views.brightness: 1.35, views.contrast: 1.3, views.saturation: 0.7}
    theirs = {
        views.brightness: F.adjust_brightness,
        views.contrast: F.adjust_contrast,
        views.saturation: F.adjust_saturation,
    }
    image = Image.fromarray(photos[0])
    for order in ([0, 1, 2], [2, 1, 0]):
        jitter = tuple(list(factors.items())[i] for i in order)
        for grey, radius in ((False, 1.2), (True, None)):
            ours = render(photos[0], Draw(box, True, jitter, grey, radius), 96)
            expected = F.hflip(F.resized_crop(image, *box, [96, 96], antialias=True))
            for operation, factor in jitter:
                expected = theirs[operation](expected, factor)
            if grey:
                expected = F.to_grayscale(expected, 3)
            if radius:
                expected = expected.filter(ImageFilter.GaussianBlur(radius))
            assert_near(ours, np.asarray(expected), 1, 2, 12)


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
    spec = replace(ViewSpec(), **change)
    happened = {
        "flip": lambda d: d.flip,
        "color_jitter": lambda d: len(d.jitter) > 0,
        "grayscale": lambda d: d.grayscale,
        "blur": lambda d: d.blur is not None,
    }[name]
    share = np.mean([happened(d) for d in draws(spec, (0.3, 1), 50, 50)])
    assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / SAMPLES)  # exact at 0 and 1


def test_default_probabilities_are_the_official_ones() -> None:
    spec = ViewSpec()
    assert (spec.flip, spec.color_jitter, spec.grayscale, spec.blur) == (0.5, 0.8, 0.2, 0.5)
    assert (spec.rand_crop_scale, spec.focal_crop_scale) == ((0.3, 1.0), (0.05, 0.3))


def test_decisions_are_independent() -> None:
    decided = np.array(
        [
            (d.flip, len(d.jitter) > 0, d.grayscale, d.blur is not None, d.box.top, d.box.left)
            for d in draws(ViewSpec(), (0.3, 0.5), 400, 400)
        ],
        dtype=float,
    )
    correlation = np.corrcoef(decided.T) - np.eye(6)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(SAMPLES)


def test_golden_jitter_and_blur_draws(golden: dict[str, Any]) -> None:
    key = next(k for k in golden if k.startswith("color_jitter_"))
    spec = ViewSpec(color_jitter=1, blur=1, color_jitter_strength=float(key.split("_")[-1]))
    all_draws = draws(spec, (0.3, 1), 50, 50)
    operations = (views.brightness, views.contrast, views.saturation, views.hue)
    for place, operation in enumerate(operations):
        factors = np.array([f for d in all_draws for o, f in d.jitter if o is operation])
        assert len(factors) == SAMPLES
        name = operation.__name__
        assert_same_distribution(factors, golden[key][name], name)
        low, high = golden[key]["ranges"][name]
        assert low <= factors.min() <= factors.max() <= high
        first = np.mean([d.jitter[0][0] is operation for d in all_draws])
        assert first == pytest.approx(golden[key]["first_op_freq"][place], abs=0.035)
    orders = {tuple(o.__name__ for o, _ in d.jitter) for d in all_draws}
    assert len(orders) == 24
    radii = np.array([d.blur for d in all_draws])
    assert_same_distribution(radii, golden["blur"]["radius"], "blur radius")


def test_strong_jitter_never_turns_negative() -> None:
    spec = ViewSpec(color_jitter=1, color_jitter_strength=2)
    for draw in draws(spec, (0.3, 1), 50, 50)[:500]:
        assert all(factor >= 0 for operation, factor in draw.jitter if operation is not views.hue)


def test_switching_one_off_changes_no_other() -> None:
    full = draws(ViewSpec(), (0.3, 1), 50, 50)[:200]
    for name in ("flip", "color_jitter", "grayscale", "blur"):
        field = "jitter" if name == "color_jitter" else name
        change: dict[str, Any] = {name: 0.0}
        off: Any = {"flip": False, "jitter": (), "grayscale": False, "blur": None}[field]
        without = draws(replace(ViewSpec(), **change), (0.3, 1), 50, 50)[:200]
        assert without == [d._replace(**{field: off}) for d in full]


# --- whole views


def test_golden_pixel_statistics(golden: dict[str, Any], photos: list[np.ndarray]) -> None:
    """Each kind of view, all augmentations on, has the statistics recorded from the original."""
    count, spec = 300, ViewSpec()
    offset = np.array((0.485, 0.456, 0.406), np.float32)
    scale = np.array((0.229, 0.224, 0.225), np.float32)
    for key, recorded in golden["pixel_stats"].items():
        found = re.fullmatch(r"img(\d+)_(rand|focal)(\d+)", key)
        assert found
        image, size = photos[int(found[1])], int(found[3])
        crop_scale = spec.rand_crop_scale if found[2] == "rand" else spec.focal_crop_scale
        means, stds, steps, grey = np.empty((4, count, 3))
        for i in range(count):
            generator = keyed.generator(0, keyed.Stream.VIEW, 1, i)
            draw = draw_view(generator, len(image), len(image[0]), crop_scale, spec)
            view = render(image, draw, size)
            grey[i] = (view == view[..., :1]).all()
            pixels = (view / np.float32(255) - offset) / scale
            means[i], stds[i] = pixels.mean((0, 1)), pixels.std((0, 1))
            steps[i] = np.abs(np.diff(pixels, axis=1)).mean()
        share = math.sqrt(1 / count + 1 / recorded["n"])
        for ours, name, spread in (
            (means.mean(0), "mean_of_view_means", recorded["std_of_view_means"]),
            (stds.mean(0), "mean_of_view_stds", recorded["std_of_view_stds"]),
            (steps.mean(), "dx_mean", recorded["dx_std"]),
            (grey.mean(), "gray_fraction", 0.4),  # of a yes with probability 0.2
            # A standard deviation errs by about 1 / sqrt(2 n) of itself, more in long tails.
            (means.std(0), "std_of_view_means", recorded["std_of_view_means"]),
            (stds.std(0), "std_of_view_stds", recorded["std_of_view_stds"]),
            (steps.std(), "dx_std", recorded["dx_std"]),
        ):
            error = np.abs(ours - np.array(recorded[name])) / (share * np.array(spread))
            assert (error < 4.5).all(), (key, name, error)
        pooled = np.sqrt((stds**2).mean(0) + means.var(0))
        np.testing.assert_allclose(pooled, recorded["pooled_std"], rtol=0.1, err_msg=key)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("random", "focal"), [(1, 10), (3, 2), (2, 0), (0, 3)])
def test_shapes(channels: int, random: int, focal: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    spec = ViewSpec(rand_size=16, focal_size=12, rand_views=random, focal_views=focal)
    made = make_views(image, spec, seed=0, epoch=0, sample=0)
    assert made.target.shape == (16, 16, channels)
    assert made.random.shape == (random, 16, 16, channels)
    assert made.focal.shape == (focal, 12, 12, channels)
    assert {v.dtype for v in made} == {np.dtype(np.uint8)}


def test_views_are_keyed_by_their_place() -> None:
    """View v is drawn from (seed, epoch, sample, v): target, then random, then focal."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    spec = ViewSpec(rand_size=16, focal_size=12, rand_views=2, focal_views=3)
    key = {"seed": 5, "epoch": 6, "sample": 7}
    made = make_views(image, spec, **key)
    in_order = [made.target, *made.random, *made.focal]
    generator = keyed.generator(5, keyed.Stream.VIEW, 6, 7)
    for view, pixels in enumerate(in_order):
        scale = spec.rand_crop_scale if view < 3 else spec.focal_crop_scale
        draw = draw_view(generator, 40, 50, scale, spec)
        np.testing.assert_array_equal(pixels, render(image, draw, 16 if view < 3 else 12))
    for change in ({"seed": 1}, {"epoch": 1}, {"sample": 1}):
        other = make_views(image, spec, **{**key, **change})
        assert (other.target != made.target).any()
    assert (made.random[0] != made.random[1]).any()
    # What one view is made with moves no other: all take as many numbers, whatever the image.
    plain = replace(spec, blur=0.0, color_jitter=0.0, grayscale=0.0, flip=0.0)
    following = []
    for width, switches in ((50, spec), (50, plain), (5000, spec)):
        generator = keyed.generator(5, keyed.Stream.VIEW, 6, 7)
        draw_view(generator, 40, width, (0.3, 1.0), switches)
        following.append(generator.random())
    assert len(set(following)) == 1


def test_fewer_views_leave_the_others_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    spec = ViewSpec(rand_size=16, focal_size=12, rand_views=1, focal_views=4)
    key = {"seed": 0, "epoch": 0, "sample": 0}
    many, few = (make_views(image, replace(spec, focal_views=n), **key) for n in (4, 2))
    np.testing.assert_array_equal(many.focal[:2], few.focal)
    np.testing.assert_array_equal(many.target, few.target)


def test_images_are_not_written_to() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = image.copy()
    spec = ViewSpec(rand_size=16, rand_crop_scale=(1, 1), color_jitter=1, blur=1)
    for sample in range(20):
        make_views(image, spec, seed=0, epoch=0, sample=sample)
    eval_view(image, 16)
    np.testing.assert_array_equal(image, before)


# --- the view for evaluation


@pytest.mark.parametrize("size", [32, 96, 224])
def test_eval_view_is_that_of_torchvision(size: int, photos: list[np.ndarray]) -> None:
    steps = T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size)])
    for image in (photos[0], photos[1][:, :333], photos[0][:300, :299]):
        assert_near(eval_view(image, size), np.asarray(steps(Image.fromarray(image))), 0.1, 1, 1)


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (12, 16, 3)])
def test_eval_view_keeps_the_borders_of_small_images(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    squeezed = image[..., 0] if shape[-1] == 1 else image
    expected = np.asarray(Image.fromarray(squeezed).resize((16, 16), Image.Resampling.BILINEAR))
    assert_near(eval_view(image, 16), expected.reshape(16, 16, shape[-1]), 0.5, 1, 1)
