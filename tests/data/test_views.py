"""Views against torchvision's PIL pipeline and against statistics recorded from the original."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torchvision.transforms as T
import torchvision.transforms.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from msn.config.sections.data import Interpolation
from msn.data import views
from msn.data.batch import allocate
from msn.data.color import adjust
from msn.data.draws import Box, Draw, Operation, ViewSpec, draw_view
from msn.data.image import ArrayImage, EncodedImage
from msn.data.views import SampleViews, eval_view, make_views, max_reduction, reduced_box, render
from msn.methods.msn.model import view_kinds
from msn.runtime import keyed
from tests.support.views import data_section, view_spec

GOLDEN = Path(os.environ.get("MSN_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))


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


PLAIN = data_section(flip=0, color_jitter=0, grayscale=0, blur=0)


def made(image: np.ndarray, spec: ViewSpec, **key: int) -> SampleViews:
    """All views of an image, in buffers of their own."""
    (out,) = allocate(spec, 1, image.shape[2]).samples()
    make_views(ArrayImage(image, image.shape[2]), spec, **key, out=out)
    return out


# --- pixel operations. Tolerances in gray levels: (mean, 99th percentile, largest) difference.


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


@pytest.mark.parametrize("size", [(30, 30), (40, 50), (64, 64), (96, 128), (20, 100), (224, 224)])
def test_bicubic_resize_is_that_of_pil(size: tuple[int, int], small: list[np.ndarray]) -> None:
    """PIL's kernel (a = -0.5), widened where it shrinks; first across, then down, in two steps.

    In one step newer versions of Pillow go down first where that is less work, and then cut off
    other values that leave 0 .. 255 in between.
    """
    cubic = Image.Resampling.BICUBIC
    height, width = size
    two_steps = pil(lambda im: im.resize((width, im.height), cubic).resize((width, height), cubic))
    for image in small:
        for pixels in (image, image[..., 0].copy(), image[3:, 5:-7]):
            ours = views.resize(pixels, *size, "bicubic")
            assert_near(ours, two_steps(pixels), 0.01, 0, 2)
            if size != image.shape[:2]:
                assert np.abs(ours.astype(int) - views.resize(pixels, *size)).mean() > 0.3


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
@pytest.mark.parametrize("shape", [(90, 120, 3), (90, 120, 1), (20, 30, 3), (90, 120, 5)])
def test_bicubic_views_are_the_same_crops(shape: tuple[int, ...], augment_on: str) -> None:
    """The filter moves no draw, on neither path: each view is the bicubic crop of its box."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    spec = view_spec(
        rand_size=24, focal_size=16, focal_views=2, augment_on=augment_on, interpolation="bicubic",
        color_jitter=0, grayscale=0, blur=0,
    )  # fmt: skip
    found = made(image, spec, seed=3, epoch=1, sample=5)
    generator = keyed.generator(3, keyed.Stream.VIEW, 1, 5)
    drawn = [
        draw_view(generator, shape[0], shape[1], kind.scale, data_section(color_jitter=0, blur=0))
        for kind in spec.kinds
        for _ in range(kind.count)
    ]
    shown = [view for kind in found.kinds.values() for view in kind]
    cubic = Image.Resampling.BICUBIC
    for draw, view in zip(drawn, shown, strict=True):
        top, left, h, w = draw.box
        size = len(view)
        for c in range(shape[2]):
            cut = Image.fromarray(image[top : top + h, left : left + w, c])
            expected = np.asarray(cut.resize((size, h), cubic).resize((size, size), cubic))
            expected = expected[:, ::-1] if draw.flip and augment_on == "cpu" else expected
            assert_near(view[..., c], expected, 0.02, 1, 2)


@pytest.mark.parametrize("channels", [2, 4, 5, 13, 200])
def test_other_channels_are_so_many_gray_images(channels: int) -> None:
    """But for contrast, which takes one gray of all of them."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
    factors = {Operation.BRIGHTNESS: 1.4, Operation.SATURATION: 0.2, Operation.HUE: 0.1}
    box = Box(3, 5, 30, 40)
    for size in (16, 64):
        draw = Draw(box, True, tuple(factors.items()), True, 1.3)
        ours = render(image, draw, size)
        for c in range(channels):
            np.testing.assert_array_equal(ours[..., c], render(image[..., c].copy(), draw, size))
        view = eval_view(image, size)
        for c in range(channels):
            np.testing.assert_array_equal(
                view[..., c], eval_view(image[..., c : c + 1], size)[..., 0]
            )
    for factor in (0.3, 1.0, 1.8):
        expected = np.clip(factor * image + (1 - factor) * round(image.mean()), 0, 255)
        found = image.copy()
        adjust(found, ((Operation.CONTRAST, factor),))
        assert np.abs(found - expected).max() <= 1


def test_render_applies_all_in_the_order_of_the_original(photos: list[np.ndarray]) -> None:
    """Crop, resize, flip, jitter in its order, grayscale, blur: against the same steps in PIL."""
    box = Box(top=40, left=100, height=200, width=260)
    factors = {Operation.BRIGHTNESS: 1.35, Operation.CONTRAST: 1.3, Operation.SATURATION: 0.7}
    theirs = {
        Operation.BRIGHTNESS: F.adjust_brightness,
        Operation.CONTRAST: F.adjust_contrast,
        Operation.SATURATION: F.adjust_saturation,
    }
    image = Image.fromarray(photos[0])
    for order in ([0, 1, 2], [2, 1, 0], []):
        jitter = tuple(list(factors.items())[i] for i in order)
        for gray, radius in ((False, 1.2), (True, None)):
            ours = render(photos[0], Draw(box, True, jitter, gray, radius), 96)
            expected = F.hflip(F.resized_crop(image, *box, [96, 96], antialias=True))
            for operation, factor in jitter:
                expected = theirs[operation](expected, factor)
            if gray:
                expected = F.to_grayscale(expected, 3)
            if radius:
                expected = expected.filter(ImageFilter.GaussianBlur(radius))
            assert_near(ours, np.asarray(expected), 1, 2, 12)


# --- whole views


@pytest.mark.slow
def test_golden_pixel_statistics(golden: dict[str, Any], photos: list[np.ndarray]) -> None:
    """Each kind of view, all augmentations on, has the statistics recorded from the original."""
    count, spec = 300, data_section()
    offset = np.array((0.485, 0.456, 0.406), np.float32)
    scale = np.array((0.229, 0.224, 0.225), np.float32)
    for key, recorded in golden["pixel_stats"].items():
        found = re.fullmatch(r"img(\d+)_(rand|focal)(\d+)", key)
        assert found
        image, size = photos[int(found[1])], int(found[3])
        crop_scale = spec.rand_crop_scale if found[2] == "rand" else spec.focal_crop_scale
        means, stds, steps, gray = np.empty((4, count, 3))
        for i in range(count):
            generator = keyed.generator(0, keyed.Stream.VIEW, 1, i)
            draw = draw_view(generator, len(image), len(image[0]), crop_scale, spec)
            view = render(image, draw, size)
            gray[i] = (view == view[..., :1]).all()
            pixels = (view / np.float32(255) - offset) / scale
            means[i], stds[i] = pixels.mean((0, 1)), pixels.std((0, 1))
            steps[i] = np.abs(np.diff(pixels, axis=1)).mean()
        share = math.sqrt(1 / count + 1 / recorded["n"])
        for ours, name, spread in (
            (means.mean(0), "mean_of_view_means", recorded["std_of_view_means"]),
            (stds.mean(0), "mean_of_view_stds", recorded["std_of_view_stds"]),
            (steps.mean(), "dx_mean", recorded["dx_std"]),
            (gray.mean(), "gray_fraction", 0.4),  # of a yes with probability 0.2
            # A standard deviation errs by about 1 / sqrt(2 n) of itself, more in long tails.
            (means.std(0), "std_of_view_means", recorded["std_of_view_means"]),
            (stds.std(0), "std_of_view_stds", recorded["std_of_view_stds"]),
            (steps.std(), "dx_std", recorded["dx_std"]),
        ):
            error = np.abs(ours - np.array(recorded[name])) / (share * np.array(spread))
            assert (error < 4.5).all(), (key, name, error)
        pooled = np.sqrt((stds**2).mean(0) + means.var(0))
        np.testing.assert_allclose(pooled, recorded["pooled_std"], rtol=0.1, err_msg=key)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("random", "focal"), [(1, 10), (3, 2), (2, 0), (1, 3)])
def test_shapes(channels: int, random: int, focal: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    spec = view_spec(rand_size=16, focal_size=12, rand_views=random, focal_views=focal)
    it = made(image, spec, seed=0, epoch=0, sample=0)
    assert it["target"][0].shape == (16, 16, channels)
    assert it["random"].shape == (random, 16, 16, channels)
    assert it["focal"].shape == (focal, 12, 12, channels)
    assert {v.dtype for v in it.kinds.values()} == {np.dtype(np.uint8)}


def test_views_are_keyed_by_their_place() -> None:
    """View v is drawn from (seed, epoch, sample, v): target, then random, then focal."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = data_section(rand_size=16, focal_size=12, rand_views=2, focal_views=3)
    spec = ViewSpec(view_kinds(data), data)
    key = {"seed": 5, "epoch": 6, "sample": 7}
    it = made(image, spec, **key)
    in_order = [it["target"][0], *it["random"], *it["focal"]]
    generator = keyed.generator(5, keyed.Stream.VIEW, 6, 7)
    for view, pixels in enumerate(in_order):
        scale = data.rand_crop_scale if view < 3 else data.focal_crop_scale
        draw = draw_view(generator, 40, 50, scale, data)
        np.testing.assert_array_equal(pixels, render(image, draw, 16 if view < 3 else 12))
    for change in ({"seed": 1}, {"epoch": 1}, {"sample": 1}):
        other = made(image, spec, **{**key, **change})
        assert (other["target"][0] != it["target"][0]).any()
    assert (it["random"][0] != it["random"][1]).any()
    # What one view is made with moves no other: all take as many numbers, whatever the image.
    plain = PLAIN
    following = []
    for width, switches in ((50, data), (50, plain), (5000, data)):
        generator = keyed.generator(5, keyed.Stream.VIEW, 6, 7)
        draw_view(generator, 40, width, (0.3, 1.0), switches)
        following.append(generator.random())
    assert len(set(following)) == 1


def test_fewer_views_leave_the_others_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    key = {"seed": 0, "epoch": 0, "sample": 0}
    many, few = (
        made(image, view_spec(rand_size=16, focal_size=12, focal_views=n), **key) for n in (4, 2)
    )
    np.testing.assert_array_equal(many["focal"][:2], few["focal"])
    np.testing.assert_array_equal(many["target"][0], few["target"][0])


def test_images_are_not_written_to() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = image.copy()
    spec = view_spec(rand_size=16, rand_crop_scale=(1, 1), color_jitter=1, blur=1)
    for sample in range(20):
        made(image, spec, seed=0, epoch=0, sample=sample)
    eval_view(image, 16)
    np.testing.assert_array_equal(image, before)


# --- reduced images


def test_images_are_reduced_as_far_as_all_crops_bear() -> None:
    box, wide = Box(0, 0, 400, 500), Box(0, 0, 100, 900)
    assert [max_reduction([box], [size]) for size in (224, 101, 100, 50, 25, 1)] == [
        1,
        1,
        2,
        4,
        8,
        8,
    ]
    assert max_reduction([box, wide], [25, 25]) == 2


@pytest.mark.parametrize("size", [40, 24])
def test_views_of_a_reduced_jpeg_are_near(size: int, photos: list[np.ndarray]) -> None:
    """Against PIL on the full image, where the crop was moved to whole reduced pixels."""
    data = PLAIN.model_copy(
        update={"rand_size": size, "focal_views": 0, "rand_crop_scale": (0.6, 1.0)}
    )
    spec = ViewSpec(view_kinds(data), data)
    reduction = {40: 4, 24: 4}[size]
    for photo in photos:
        encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        image = EncodedImage(encoded.tobytes(), 3, "photo")
        (out,) = allocate(spec, 1, 3).samples()
        make_views(image, spec, seed=0, epoch=0, sample=0, out=out)
        generator = keyed.generator(0, keyed.Stream.VIEW, 0, 0)
        height, width, _ = image.shape
        draws = [draw_view(generator, height, width, (0.6, 1.0), data) for _ in range(2)]
        assert max_reduction([draw.box for draw in draws], [size, size]) == reduction
        shape = image.pixels(reduction).shape
        for draw, view in zip(draws, (out["target"][0], out["random"][0]), strict=True):
            top, left, h, w = (reduction * x for x in reduced_box(draw.box, reduction, shape))
            assert abs(top - draw.box.top) <= reduction
            assert abs(left - draw.box.left) <= reduction
            moved = Image.fromarray(image.pixels()).crop((left, top, left + w, top + h))
            expected = moved.resize((size, size), Image.Resampling.BILINEAR)
            assert_near(view, np.asarray(expected), 1, 6, 30)


@given(
    height=st.integers(64, 4000), width=st.integers(64, 4000), sample=st.integers(0, 10**6),
    reduction=st.sampled_from([2, 4, 8]),
)  # fmt: skip
def test_reduced_boxes_lie_inside(height: int, width: int, sample: int, reduction: int) -> None:
    generator = keyed.generator(0, keyed.Stream.VIEW, 0, sample)
    shape = -(-height // reduction), -(-width // reduction)
    box = draw_view(generator, height, width, (0.3, 1.0), PLAIN).box
    top, left, h, w = reduced_box(box, reduction, shape)
    assert min(h, w) >= 1
    assert 0 <= top <= shape[0] - h
    assert 0 <= left <= shape[1] - w


# --- the view for evaluation


@pytest.mark.parametrize(("size", "short_side"), [(32, 32), (64, 73), (96, 110), (224, 256)])
def test_eval_view_is_that_of_torchvision(
    size: int, short_side: int, photos: list[np.ndarray]
) -> None:
    filters: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for name in filters:
        steps = T.Compose([T.Resize(short_side, T.InterpolationMode(name)), T.CenterCrop(size)])
        for image in (photos[0], photos[1][:, :333], photos[0][:300, :299], photos[1][:90, :60]):
            expected = np.asarray(steps(Image.fromarray(image)))
            assert_near(eval_view(image, size, name), expected, 0.15, 1, 2)


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (28, 28, 3)])
def test_small_eval_views_keep_the_borders(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    squeezed = image[..., 0] if shape[-1] == 1 else image
    expected = np.asarray(Image.fromarray(squeezed).resize((16, 16), Image.Resampling.BILINEAR))
    assert_near(eval_view(image, 16), expected.reshape(16, 16, shape[-1]), 0.5, 1, 1)
