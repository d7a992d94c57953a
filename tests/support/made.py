"""Small data sets on disk, one of each kind that there is a source for."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

COUNT = 24
CLASSES = 3


def images(side: int, channels: int = 3, count: int = COUNT) -> np.ndarray:
    """uint8 (count, side, side, channels), smooth enough for JPEG."""
    noise = np.random.default_rng(side).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    large = [
        PIL.Image.fromarray(i).resize((side, side), PIL.Image.Resampling.BICUBIC) for i in noise
    ]
    return np.stack([np.asarray(image)[..., :channels] for image in large])


def labels(count: int = COUNT) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % CLASSES


def encoded(image: np.ndarray, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, format)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def make_folder(root: Path, split: str = "train") -> dict[str, Any]:
    for i, (image, label) in enumerate(zip(images(20), labels(), strict=True)):
        path = root / split / f"class {label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    return {"source": "folder", "root_path": str(root)}


def make_list(root: Path, split: str = "train") -> dict[str, Any]:
    make_folder(root, split)
    lines = [f"class {labels()[i]}/{i}.png\t{labels()[i]}\n" for i in range(COUNT)]
    (root / f"{split}.txt").write_text("".join(lines))
    place = {"root_path": str(root), "image_folder": split}
    return {"source": "list", "image_list": str(root / "{split}.txt"), **place}


def add(shard: tarfile.TarFile, name: str, content: bytes = b"", **attributes: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in attributes.items():
        setattr(member, key, value)
    shard.addfile(member, io.BytesIO(content))


def make_tar(root: Path, split: str = "train") -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(COUNT), 3)):
        with tarfile.open(root / f"set-{split}-{number:04}.tar", "w") as shard:
            for i in part:
                add(shard, f"a/{i:06}.jpg", encoded(images(20)[i], "JPEG"))
                add(shard, f"a/{i:06}.cls", str(labels()[i]).encode())
                add(shard, f"a/{i:06}.json", b"{}")
    return {"source": "tar", "root_path": str(root)}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def make_idx(root: Path, split: str = "train", *, gz: bool = True) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    prefix = {"train": "train", "val": "t10k"}[split]
    for stem, array in (
        (f"{prefix}-images-idx3", images(28, 1)[..., 0]),
        (f"{prefix}-labels-idx1", labels()),
    ):
        content = idx(array)
        (root / f"{stem}-ubyte{'.gz' if gz else ''}").write_bytes(
            gzip.compress(content) if gz else content
        )
    return {"source": "idx", "root_path": str(root)}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_cifar10(root: Path) -> dict[str, Any]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    planes = images(32).transpose(0, 3, 1, 2).reshape(COUNT, -1)
    parts = [*np.array_split(np.arange(COUNT), 5), np.arange(10)]
    for name, part in zip(
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], parts, strict=True
    ):
        batch = {"data": planes[part], "labels": labels()[part].tolist(), "filenames": ["x"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    return {"source": "cifar10", "root_path": str(root)}


def make_cifar100(root: Path) -> dict[str, Any]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    planes = images(32).transpose(0, 3, 1, 2).reshape(COUNT, -1)
    for name in ("train", "test"):
        batch = {"data": planes, "fine_labels": labels().tolist(), "coarse_labels": [0] * COUNT}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c"]}))
    return {"source": "cifar100", "root_path": str(root)}


def make_stl10(root: Path) -> dict[str, Any]:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name in ("train", "test", "unlabeled"):
        images(96).transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
        (labels() + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("a\nb\nc\n")
    return {"source": "stl10", "root_path": str(root)}


def make_stl10_unlabeled(root: Path) -> dict[str, Any]:
    return {**make_stl10(root), "source": "stl10_unlabeled"}


def make_huggingface(root: Path) -> dict[str, Any]:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)}
    )
    columns = {"image": list(map(PIL.Image.fromarray, images(20))), "label": labels().tolist()}
    train = datasets.Dataset.from_dict(columns, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": train, "test": train.select(range(5))}).save_to_disk(str(root))
    return {"source": "huggingface", "root_path": str(root)}


def make_digits(root: Path) -> dict[str, Any]:
    return {"source": "digits", "root_path": None}


MAKERS = {
    "folder": make_folder,
    "list": make_list,
    "tar": make_tar,
    "idx": make_idx,
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "stl10": make_stl10,
    "stl10_unlabeled": make_stl10_unlabeled,
    "digits": make_digits,
    "huggingface": make_huggingface,
}
