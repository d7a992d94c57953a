"""How fast one core turns JPEGs into views, against the pipelines that people use today.

    python benchmarks/data.py                 JPEGs of the sizes of ImageNet, 2 x 224 + 10 x 96 px
    python benchmarks/data.py --rounds 9
    python benchmarks/data.py --recipe mae          one bicubic crop of 224 px

All run in this process with one thread and take turns. Counted is processor time, so that it
matters less what else the machine does; a ratio is the median of those of the rounds. Each gets the
encoded file in memory and ends with uint8 views, torchvision too; lightly cannot be spared its
normalized floats.
Needs the extra "benchmarks" (lightly).
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import PIL.Image
import PIL.ImageFilter
import torch
import torchvision.transforms as T
from lightly.transforms import MAETransform, MSNTransform
from measure import cpu_name
from sklearn.datasets import load_sample_images

from msn.config.sections.data import Images
from msn.config.sections.mae import MAEData
from msn.config.sections.msn import MSNData
from msn.data.batch import allocate
from msn.data.draws import ViewKind, ViewSpec, draw_view
from msn.data.image import EncodedImage
from msn.data.loader import training_batches
from msn.data.order import Order
from msn.data.sources import open_source
from msn.data.views import crop, make_views
from msn.methods.msn.model import view_kinds
from msn.runtime import keyed

SIZES = ((500, 375), (375, 500), (500, 333), (640, 480))  # width, height
QUALITY = 90
MSN_DATA, MAE_DATA = MSNData(source="digits"), MAEData(source="digits")  # the official views
SPECS = {
    "msn": ViewSpec(view_kinds(MSN_DATA), MSN_DATA),
    "mae": ViewSpec((ViewKind("image", 1, MAE_DATA.image_size, MAE_DATA.crop_scale),), MAE_DATA),
}
GOALS = {"msn": ((4, 6), (4, 6), (8, 12)), "mae": ((1.5, 2), (1.5, 2), (1.5, 2))}
"""At least and hoped for: against torchvision, lightly, and torchvision with colors elsewhere."""

Pipeline = Callable[[bytes, int], object]


def jpegs() -> list[bytes]:
    """The photographs that scikit-learn ships, each in all sizes."""
    files = []
    for photo in load_sample_images().images:
        for size in SIZES:
            pixels = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)[..., ::-1]
            encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
            files.append(encoded.tobytes())
    return files


class PILBlur:
    """Gaussian blur with a radius from 0.1 to 2 pixels."""

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        radius = 0.1 + 1.9 * torch.rand(()).item()
        return image.filter(PIL.ImageFilter.GaussianBlur(radius))


def torchvision_pipeline(spec: ViewSpec) -> Pipeline:
    """The operations of the official recipe (paper, A.1) in torchvision on PIL images."""
    data = spec.augmentation
    strength, filter_ = data.color_jitter_strength, T.InterpolationMode(data.interpolation)

    def view(size: int, scale: tuple[float, float]) -> Callable[[PIL.Image.Image], torch.Tensor]:
        colors = T.ColorJitter(*[0.8 * strength] * 3, 0.2 * strength)
        operations: Callable[[PIL.Image.Image], torch.Tensor] = T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=filter_),
                T.RandomHorizontalFlip(data.flip),
                T.RandomApply([colors], data.color_jitter),
                T.RandomGrayscale(data.grayscale),
                T.RandomApply([PILBlur()], data.blur),
                T.PILToTensor(),
            ]
        )
        return operations

    views = [view(kind.size, kind.scale) for kind in spec.kinds for _ in range(kind.count)]

    def run(data: bytes, sample: int) -> object:
        image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        return [make(image) for make in views]

    return run


def lightly_pipeline(recipe: str) -> Pipeline:
    """lightly's transform for MSN or MAE, with the numbers and scales of views of the recipe."""
    transform: Callable[[PIL.Image.Image], object] = MAETransform()
    if recipe == "msn":
        transform = MSNTransform(
            random_size=MSN_DATA.rand_size,
            focal_size=MSN_DATA.focal_size,
            random_views=1 + MSN_DATA.rand_views,
            focal_views=MSN_DATA.focal_views,
            random_crop_scale=MSN_DATA.rand_crop_scale,
            focal_crop_scale=MSN_DATA.focal_crop_scale,
            cj_strength=MSN_DATA.color_jitter_strength,
        )
    return lambda data, sample: transform(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def our_pipeline(spec: ViewSpec) -> Pipeline:
    """What a loader process does with the bytes of one file."""
    (out,) = allocate(spec, 1, 3).samples()

    def run(data: bytes, sample: int) -> object:
        image = EncodedImage(data, 3, "photo")
        make_views(image, spec, seed=0, epoch=0, sample=sample, out=out)
        return out

    return run


def floor(spec: ViewSpec) -> Pipeline:
    """Decoding and our crops and resizes alone, where the crops are known beforehand."""
    known: dict[int, Any] = {}
    data = spec.augmentation

    def boxes(image: EncodedImage, sample: int) -> Any:
        generator = keyed.generator(0, keyed.Stream.VIEW, 0, sample)
        height, width, _ = image.shape
        return [
            (draw_view(generator, height, width, kind.scale, data).box, kind.size)
            for kind in spec.kinds
            for _ in range(kind.count)
        ]

    def run(file: bytes, sample: int) -> object:
        image = EncodedImage(file, 3, "photo")
        if sample not in known:  # in the warm-up
            known[sample] = boxes(image, sample)
        pixels = image.pixels()
        return [crop(pixels, box, size, data.interpolation) for box, size in known[sample]]

    return run


def take_turns(
    pipelines: dict[str, Pipeline], files: Sequence[bytes], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds for an image, by pipeline and round; the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, pipeline in pipelines.items():
            start = time.process_time()
            for sample in range(4 * len(files)):
                pipeline(files[sample % len(files)], sample)
            if number:
                times[name].append((time.process_time() - start) / (4 * len(files)) * 1000)
    return times


def worker_ratio(spec: ViewSpec, files: Sequence[bytes], rounds: int) -> float:
    """Images per second of 2 loader processes over those of 1, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        for i in range(512):
            (Path(folder) / "train" / f"{i}.jpg").write_bytes(files[i % len(files)])
        source = open_source(Images(root_path=folder), "train")

        def seconds(workers: int) -> float:
            steps = 32
            order = Order(len(source), 16, steps, seed=0)
            stream = training_batches(
                source, spec, order, start_step=0, stop_step=3 * steps, num_workers=workers
            )
            for _ in range(4):  # until the workers are at their pace
                next(stream)
            start = time.perf_counter()
            for _ in range(steps):
                next(stream)
            return time.perf_counter() - start

        return statistics.median(seconds(1) / seconds(2) for _ in range(rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description="JPEGs to views, side by side.")
    parser.add_argument("--recipe", choices=SPECS, default="msn", help="whose views (default msn)")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each (default 21)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    files, spec = jpegs(), SPECS[options.recipe]
    pipelines = {
        "torchvision on PIL": torchvision_pipeline(spec),
        "lightly's transform": lightly_pipeline(options.recipe),
        "ours": our_pipeline(spec),
        "ours, augment_on device": our_pipeline(changed(spec, augment_on="device")),
        "floor (decode, crop, resize)": floor(spec),
    }
    if spec.augmentation.interpolation == "bicubic":
        pipelines["ours, bilinear"] = our_pipeline(changed(spec, interpolation="bilinear"))
    times = take_turns(pipelines, files, options.rounds)
    torchvision, lightly, ours, device, bare, *_ = times.values()
    goals = GOALS[options.recipe]

    def ratio(slow: list[float], fast: list[float]) -> float:
        return statistics.median(s / f for s, f in zip(slow, fast, strict=True))

    print(
        f"{len(files)} JPEGs of quality {QUALITY}, {len(files[0]) // 1024} KiB and the like;"
        f" {cpu_name()}, 1 thread, median of {options.rounds} rounds\n"
    )
    for name, row in times.items():
        print(f"{name:30}{statistics.median(row):8.2f} ms / image")
    print(f"\n{'':44}{'ratio':>7}{'at least':>10}{'goal':>7}")
    for name, value, least, goal in (
        ("ours against torchvision", ratio(torchvision, ours), *goals[0]),
        ("ours against lightly", ratio(lightly, ours), *goals[1]),
        ("augment_on device against torchvision", ratio(torchvision, device), *goals[2]),
        ("2 workers against 1", worker_ratio(spec, files, min(5, options.rounds)), 1.8, 1.95),
    ):
        print(f"{name:44}{value:7.2f}{least:10g}{goal:7g}  {verdict(value, least, goal)}")
    value = ratio(ours, bare)
    print(f"{'ours over the floor':44}{value:7.2f}{1.6:10g}{1.25:7g}", end="  ")
    print(verdict(-value, -1.6, -1.25))
    print("\nindex and memory of a worker with 1,000,000 files: python benchmarks/index.py")
    return 0


def changed(spec: ViewSpec, **settings: str) -> ViewSpec:
    """The same views with other settings of the augmentation."""
    return ViewSpec(spec.kinds, spec.augmentation.model_copy(update=settings))


def verdict(value: float, least: float, goal: float) -> str:
    if value >= goal:
        return "goal met"
    return "met" if value >= least else "NOT met"


if __name__ == "__main__":
    sys.exit(main())
