"""Open the source of images that `data.source` names."""

from pathlib import Path

from msn.config.sections.data import Images
from msn.data.sources.base import SPLITS, Sample, Source, data_folder, split_folder
from msn.data.sources.digits import Digits
from msn.data.sources.folder import Folder
from msn.data.sources.hugging_face import HuggingFace
from msn.data.sources.idx import open_idx
from msn.data.sources.image_list import ImageList, list_file, list_root
from msn.data.sources.shards import Shards, find_shards
from msn.data.sources.torchvision_sets import open_cifar, open_stl10
from msn.runtime.errors import UserError

__all__ = ["Sample", "Source", "open_source"]

FILES = ("folder", "list", "tar", "huggingface")  # of which each may hold what it likes


def open_source(images: Images, split: str) -> Source:
    """Open one split of the data set that a `data` section names.

    Args:
        images: where the images are; `channels` None keeps the source's own number, 3 for files.
        split: "train" or "val".

    Raises:
        UserError: something is missing, is not what it should be, or holds no image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    source, channels = images.source, images.channels
    if channels not in (None, 1, 3) and source not in FILES:
        raise UserError(
            f"data.channels is {channels}: images of {source} are of 1 (gray) or 3 (RGB); only"
            f" {', '.join(FILES)} may hold others"
        )
    if source == "digits":
        return Digits(split=split, channels=channels or 1)
    if source == "list":
        root = list_root(images.root_path, images.image_folder)
        return ImageList(list_file(images.image_list, split), root, channels=channels or 3)
    base = data_folder(images.root_path, images.image_folder)
    return _open_folder(base, images, split)


def _open_folder(base: Path, images: Images, split: str) -> Source:
    """Open one split of a data set that lies in a folder."""
    source, channels, download = images.source, images.channels, images.download
    match source:
        case "folder":
            return Folder(split_folder(base, split), channels=channels or 3)
        case "tar":
            return Shards(
                *find_shards(base, split), channels=channels or 3, image_key=images.image_key
            )
        case "idx":
            return open_idx(base, split=split, channels=channels)
        case "cifar10" | "cifar100":
            return open_cifar(base, source, split=split, channels=channels, download=download)
        case "stl10" | "stl10_unlabeled":
            return open_stl10(base, source, split=split, channels=channels, download=download)
        case "huggingface":
            return HuggingFace(base, split=split, channels=channels or 3)
    raise ValueError(f"{source} is not a source in a folder")
