"""The batched path against PIL and against the views of the CPU path, with identical draws.

Tolerances in gray levels: (mean, 99th percentile, largest) difference. The batched path computes in
floating point what PIL rounds after every step.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from msn.data.batch import Views, allocate
from msn.data.device_views import augment
from msn.data.draws import Box, Draw, Jitter, Operation, draw_view, pack
from msn.data.image import ArrayImage
from msn.data.views import make_views, render
from msn.runtime import keyed
from tests.support.views import data_section, view_spec

B, C, S, H = Operation
WHOLE = Box(0, 0, 64, 64)
PLAIN = Draw(WHOLE, False, (), False, None)
SAME: Jitter = ((B, 1.0), (C, 1.0), (S, 1.0), (H, 0.0))


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """Two photographs and noise, the worst case: (3, 64, 64, 3)."""
    photos = (cv2.resize(p, (64, 64), interpolation=cv2.INTER_AREA)
              for p in load_sample_images().images)  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return np.stack([*photos, noise])


def on_device(images: np.ndarray, draws: list[Draw]) -> np.ndarray:
    rows = np.array([pack(draw) for draw in draws], np.float32)
    return augment(torch.from_numpy(images), rows).movedim(1, -1).numpy()


def assert_near(ours: np.ndarray, theirs: np.ndarray, mean: float, p99: float, top: float) -> None:
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs.astype(float))
    found = (difference.mean(), np.percentile(difference, 99), difference.max())
    assert found[0] <= mean, found
    assert found[1] <= p99, found
    assert found[2] <= top, found


def step(operation: Operation, factor: float) -> Jitter:
    return tuple((op, factor if op == operation else same) for op, same in SAME)


OPERATIONS: list[tuple[str, Callable[[float], Draw], Callable[[Any, float], Any], Any, Any]] = [
    ("flip", lambda f: PLAIN._replace(flip=True), lambda im, f: F.hflip(im), [0], (0, 0, 0)),
    ("brightness", lambda f: PLAIN._replace(jitter=step(B, f)), F.adjust_brightness,
     [0.2, 0.6, 1.0, 1.37], (0.5, 0.6, 0.6)),
    ("contrast", lambda f: PLAIN._replace(jitter=step(C, f)), F.adjust_contrast,
     [0.2, 0.6, 1.0, 1.37], (0.7, 1, 1)),
    ("saturation", lambda f: PLAIN._replace(jitter=step(S, f)), F.adjust_saturation,
     [0.2, 0.6, 1.0, 1.37], (0.5, 1, 1)),
    ("hue", lambda f: PLAIN._replace(jitter=step(H, f)), F.adjust_hue,
     [-0.1, -0.03, 0.0, 0.05, 0.1, 0.4], (1.6, 9, 16)),
    ("grayscale", lambda f: PLAIN._replace(grayscale=True), lambda im, f: F.to_grayscale(im, 3),
     [0], (0.3, 0.5, 0.6)),
    ("blur", lambda f: PLAIN._replace(blur=f), lambda im, f: im.filter(ImageFilter.GaussianBlur(f)),
     [0.1, 0.3, 0.8, 1.3, 2.0], (1.1, 5, 24)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "pil", "factors", "tolerance"),
    [row[1:] for row in OPERATIONS],
    ids=[row[0] for row in OPERATIONS],
)
def test_operations_are_those_of_pil(
    draw: Callable[[float], Draw],
    pil: Callable[[Any, float], Any],
    factors: list[float],
    tolerance: tuple[float, float, float],
    small: np.ndarray,
) -> None:
    for factor in factors:
        ours = on_device(small, [draw(factor)] * len(small))
        for view, image in zip(ours, small, strict=True):
            assert_near(view, np.asarray(pil(Image.fromarray(image), factor)), *tolerance)


def test_inside_of_a_blurred_image_is_that_of_pil(small: np.ndarray) -> None:
    """The border is made up in another way."""
    radii = [0.1, 0.5, 2.0]
    ours = on_device(small, [PLAIN._replace(blur=radius) for radius in radii])
    for view, image, radius in zip(ours, small, radii, strict=True):
        theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        assert_near(view[6:-6, 6:-6], np.asarray(theirs)[6:-6, 6:-6], 1.1, 3, 3)


def test_each_image_gets_its_own_draw(small: np.ndarray) -> None:
    """A batch of all operations in many orders is what its images are alone, and in PIL."""
    spec = data_section(color_jitter=0.9)
    draws = [
        draw_view(keyed.generator(0, keyed.Stream.VIEW, 0, i), 64, 64, (0.3, 1), spec)
        ._replace(box=WHOLE)
        for i in range(48)
    ]  # fmt: skip
    images = small[np.arange(48) % 2]  # the photographs
    together = on_device(images, draws)
    pil = {B: F.adjust_brightness, C: F.adjust_contrast, S: F.adjust_saturation, H: F.adjust_hue}
    for i, draw in enumerate(draws):
        (alone,) = on_device(images[i : i + 1], [draw])
        np.testing.assert_allclose(together[i], alone, atol=1e-3)
        assert_near(together[i], render(images[i], draw, 64), 2.5, 12, 40)
        expected = Image.fromarray(images[i])
        expected = F.hflip(expected) if draw.flip else expected
        for operation, factor in draw.jitter:
            expected = pil[operation](expected, factor)
        expected = F.to_grayscale(expected, 3) if draw.grayscale else expected
        if draw.blur:
            expected = expected.filter(ImageFilter.GaussianBlur(draw.blur))
        assert_near(together[i], np.asarray(expected), 2.5, 12, 40)


def test_the_order_of_the_jitter_matters(small: np.ndarray) -> None:
    """Where brightness clips, contrast before it is another thing than contrast behind it."""
    steps: Jitter = ((B, 1.8), (C, 0.4), (S, 1.0), (H, 0.0))
    draws = [PLAIN._replace(jitter=steps), PLAIN._replace(jitter=steps[::-1])]
    first, second = on_device(small[[0, 0]], draws)
    assert np.abs(first - second).mean() > 10


def test_gray_images(small: np.ndarray) -> None:
    gray = small[:, :, :, :1].copy()
    jitter: Jitter = ((H, 0.1), (B, 1.3), (S, 0.3), (C, 0.7))
    draw = PLAIN._replace(jitter=jitter, grayscale=True, blur=1.0, flip=True)
    ours = on_device(gray, [draw] * 3)
    for view, image in zip(ours, gray, strict=True):
        assert_near(view[..., 0], render(image[..., 0], draw, 64), 1, 5, 24)


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_other_channels(channels: int, small: np.ndarray) -> None:
    images = np.concatenate([small] * 5, axis=3)[..., :channels]
    draw = PLAIN._replace(
        jitter=((H, 0.1), (B, 1.3), (S, 0.3), (C, 0.7)), grayscale=True, blur=1.0, flip=True
    )
    for view, image in zip(on_device(images, [draw] * 3), images, strict=True):
        assert_near(view, render(image, draw, 64), 1, 5, 24)


def test_nothing_drawn_is_nothing_done(small: np.ndarray) -> None:
    np.testing.assert_array_equal(on_device(small, [PLAIN] * 3), small)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_batches_are_those_of_the_cpu(channels: int, small: np.ndarray) -> None:
    """From image to normalized views: identical draws, pixels within the tolerance."""
    settings: dict[str, Any] = {
        "rand_size": 32,
        "focal_size": 16,
        "rand_views": 2,
        "focal_views": 3,
        "blur": 0.5,
    }
    mean, std = torch.full((channels,), 0.4), torch.full((channels,), 0.25)

    def batch(augment_on: Any) -> Views:
        spec = view_spec(**settings, augment_on=augment_on)
        views = allocate(spec, 16, channels)
        for i, out in enumerate(views.samples()):
            photo = small[i % 2] if channels < 4 else np.tile(small[i % 2], 2)[..., :channels]
            image = ArrayImage(photo, channels)
            make_views(image, spec, seed=0, epoch=0, sample=i, out=out)
        return views.normalized(mean, std)

    for cpu, device in zip(batch("cpu").tensors(), batch("device").tensors(), strict=True):
        assert cpu.shape == device.shape
        gray_levels = (cpu - device).abs() * 255 * 0.25
        assert gray_levels.mean() < 1.3
        assert gray_levels.flatten(-3).mean(-1).max() < 4


def test_no_focal_views(small: np.ndarray) -> None:
    spec = view_spec(rand_size=8, focal_views=0, augment_on="device")
    views = allocate(spec, 2, 3)
    for out in views.samples():
        make_views(ArrayImage(small[0], 3), spec, seed=0, epoch=0, sample=0, out=out)
    assert views.normalized(torch.zeros(3), torch.ones(3))["focal"].shape == (0, 2, 3, 96, 96)


@pytest.mark.parametrize("name", ["flip", "grayscale", "blur", "color_jitter"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_as_often_as_asked_for(name: str, p: float) -> None:
    """Seen in the pixels, on both paths."""
    plain: dict[str, Any] = {"rand_size": 16, "focal_views": 0, "rand_crop_scale": (1, 1),
             "flip": 0, "color_jitter": 0, "grayscale": 0, "blur": 0}  # fmt: skip
    change: dict[str, Any] = {name: p}
    image = ArrayImage(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), 3)
    count = 400
    for augment_on in ("cpu", "device"):
        seen = []
        for settings in (plain, {**plain, **change}):
            spec = view_spec(**settings, augment_on=augment_on)
            views = allocate(spec, count, 3)
            for i, out in enumerate(views.samples()):
                make_views(image, spec, seed=0, epoch=0, sample=i, out=out)
            seen.append(views.normalized(torch.zeros(3), torch.ones(3))["target"][0])
        changed = (seen[0] != seen[1]).flatten(1).any(1).double().mean()
        assert abs(changed - p) <= 4.5 * (p * (1 - p) / count) ** 0.5
