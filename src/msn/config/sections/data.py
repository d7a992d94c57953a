"""Section `data`: the images, and what happens to them."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from msn.config.sections.base import (
    Divisor,
    Few,
    NonEmpty,
    PathOrEmpty,
    PathText,
    Probability,
    Section,
    Side,
)


def _increasing(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError("must be [smallest, largest]; swap the two numbers")
    return scale


def _number_or_auto(workers: object) -> object:
    # Said here, as a union would give one error for each of its members.
    if workers != "auto" and (type(workers) is not int or not 0 <= workers <= 1000):
        raise ValueError('must be "auto" or a whole number from 0 to 1,000')
    return workers


Area = Annotated[float, Field(gt=0, le=1)]
CropScale = Annotated[tuple[Area, Area], Strict(False), AfterValidator(_increasing)]
Interpolation = Literal["bilinear", "bicubic"]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]
SourceName = Literal[
    "folder",
    "list",
    "tar",
    "idx",
    "cifar10",
    "cifar100",
    "stl10",
    "stl10_unlabeled",
    "digits",
    "huggingface",
]
DOWNLOADS = ("cifar10", "cifar100", "stl10", "stl10_unlabeled")


class Images(Section):
    """Where images come from, and how they are read."""

    source: SourceName = "folder"
    """Kind of data set: image files, packed files, or a data set with files of its own."""
    root_path: PathOrEmpty | None = None
    """Root folder of the data set; images are in root_path/image_folder, for folder in /train."""
    image_folder: PathOrEmpty = ""
    """Folder below root_path."""
    image_list: PathText | None = None
    """Text or CSV file of paths and labels for the list source; {split} becomes train or val."""
    image_key: NonEmpty | None = None
    """Image of a sample in tar shards, such as left.png, what follows the first dot of its name;
    null takes the first of jpg, jpeg, png, webp, ... that it has."""
    download: bool = False
    """Let torchvision download CIFAR or STL-10 to root_path/image_folder when not there."""
    num_workers: Workers = 10
    """Loader processes per training process, at most its cores; auto is one less, 0 none."""
    pin_mem: bool = True
    """Page-locked host memory for faster copies to the GPU."""
    channels: Few | None = None
    """Image channels: 1 (gray), 3 (RGB), or those of .npy files; null takes the source's own."""
    mean: Annotated[tuple[Probability, ...], Strict(False)] | None = None
    """Mean of each channel, of values in [0, 1]; null takes the source's own."""
    std: Annotated[tuple[Divisor, ...], Strict(False)] | None = None
    """Standard deviation of each channel; null takes the source's own."""

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.source not in ("digits", "list") and not self.root_path:
            rule = f"the {self.source} source needs it; set it, or use data.source: digits"
            yield "root_path", rule
        if self.source == "list" and not self.image_list:
            yield "image_list", "the list source needs it; name a text or CSV file of paths"
        if self.download and self.source not in DOWNLOADS:
            yield "download", f"only for {', '.join(DOWNLOADS)}; remove it, and fetch the files"
        for key, stats in (("mean", self.mean), ("std", self.std)):
            allowed = (self.channels,) if self.channels else (1, 3)
            if stats is not None and len(stats) not in allowed:
                counts = " or ".join(map(str, allowed))
                yield key, f"has {len(stats)} numbers; give one for each of {counts} channels"
        if self.mean and self.std and len(self.mean) != len(self.std):
            yield "std", f"has {len(self.std)} numbers, mean {len(self.mean)}; give as many"


class Augmentation(Section):
    """What happens to a crop; every probability of 0 switches its operation off."""

    flip: Probability = 0.5
    """Probability of a horizontal flip; 0 switches it off."""
    color_jitter: Probability = 0.8
    """Probability of color jitter; 0 switches it off."""
    color_jitter_strength: Annotated[float, Field(ge=0, le=2.5)] = 0.5
    """s in ColorJitter(0.8s, 0.8s, 0.8s, 0.2s); hue shifts end at 0.5, hence s at 2.5."""
    grayscale: Probability = 0.2
    """Probability of dropping the color; 0 switches it off."""
    blur: Probability = 0.5
    """Probability of a Gaussian blur of radius 0.1 to 2 px; 0 switches it off."""
    interpolation: Interpolation = "bilinear"
    """Filter that crops are resized with, there and in evaluations of the encoder."""
    augment_on: Literal["cpu", "device"] = "cpu"
    """Where flips, colors and blur are computed; crops are always made on the CPU."""


class Data(Augmentation, Images):
    """The images, and what happens to them."""

    scratch: PathText | None = None
    """Folder on a local disk for meta.copy_data; null takes the temporary one (TMPDIR)."""
    max_bad: Probability = 0.1
    """Share of the images that may be bad: those are replaced by others and listed; more stop the
    run."""


class ImageData(Data):
    """The images, of which a method takes one view each."""

    image_size: Side = 224
    """Side of an image, px."""
    crop_scale: CropScale = (0.67, 1.0)
    """Smallest and largest area of the crops, as fractions of the image."""
    color_jitter: Probability = 0.0
    """Probability of color jitter; 0 switches it off."""
    grayscale: Probability = 0.0
    """Probability of dropping the color; 0 switches it off."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur of radius 0.1 to 2 px; 0 switches it off."""
