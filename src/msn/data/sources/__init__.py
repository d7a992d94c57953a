"""Open the source of images that `data.source` names."""

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


def open_source(
    *,
    source: str,
    root_path: str | None,
    image_folder: str,
    split: str,
    channels: int | None = None,
    image_list: str | None = None,
    image_key: str | None = None,
    download: bool = False,
) -> Source:
    """Open one split of a data set.

    Args:
        source: which kind of data set, as `data.source` in the config.
        root_path: folder that holds the data set; "digits" needs none.
        image_folder: sub-folder of `root_path`, may be empty.
        split: "train" or "val".
        channels: 1 (grey) or 3 (RGB), or as many as the arrays in the files have; None keeps the
            source's own number, 3 for files.
        image_list: the file that the source "list" reads.
        image_key: which member of a sample in tar shards is its image, such as "jpg" or "left.png".
        download: whether torchvision may download what is missing.

    Raises:
        UserError: something is missing, is not what it should be, or holds no image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if channels not in (None, 1, 3) and source not in FILES:
        raise UserError(
            f"data.channels is {channels}: images of {source} are of 1 (grey) or 3 (RGB); only"
            f" {', '.join(FILES)} may hold others"
        )
    if source == "digits":
        return Digits(split=split, channels=channels or 1)
    if source == "list":
        root = list_root(root_path, image_folder)
        return ImageList(list_file(image_list, split), root, channels=channels or 3)
    base = data_folder(root_path, image_folder)
    match source:
        case "folder":
            return Folder(split_folder(base, split), channels=channels or 3)
        case "tar":
            return Shards(*find_shards(base, split), channels=channels or 3, image_key=image_key)
        case "idx":
            return open_idx(base, split=split, channels=channels)
        case "cifar10" | "cifar100":
            return open_cifar(base, source, split=split, channels=channels, download=download)
        case "stl10" | "stl10_unlabeled":
            return open_stl10(base, source, split=split, channels=channels, download=download)
        case "huggingface":
            return HuggingFace(base, split=split, channels=channels or 3)
    raise UserError(f'data.source is "{source}": no such source; see configs/schema.json for all')


def open_images(data: Images, split: str) -> Source:
    """The images that a `data` section names."""
    return open_source(
        source=data.source,
        root_path=data.root_path,
        image_folder=data.image_folder,
        split=split,
        channels=data.channels,
        image_list=data.image_list,
        image_key=data.image_key,
        download=data.download,
    )
