"""A data set that Hugging Face's `datasets` saved to disk."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from msn.data.image import BadImage
from msn.data.sources.base import EncodedSource, read_file
from msn.data.sources.labels import known_labels
from msn.runtime.errors import UserError

END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "test")}


class HuggingFace(EncodedSource):
    """The images of a data set that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Images are its first column of type Image, or without any of Array2D or Array3D; labels its
    first of type ClassLabel, if any; a negative or missing one is none.

    Raises:
        UserError: `datasets` is not installed, the folder is none of its, or has no such split or
            no images.
    """

    label_rule = "a column of labels (ClassLabel)"

    def __init__(self, folder: Path, *, split: str, channels: int = 3) -> None:
        super().__init__(channels)
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "data.source: huggingface needs the package datasets;"
                " pip install 'msn-pretraining[huggingface]'"
            ) from error
        data = _load(folder, split)
        _require_ends(data)
        features = data.features.items()
        images = [name for name, kind in features if isinstance(kind, datasets.Image)]
        array_kinds = (datasets.Array2D, datasets.Array3D)
        arrays = [name for name, kind in features if isinstance(kind, array_kinds)]
        labels = [name for name, kind in features if isinstance(kind, datasets.ClassLabel)]
        if not (images or arrays) or not len(data):
            raise UserError(f"{folder}: its columns {list(data.features)} hold no images")
        self._column = (images or arrays)[0]
        self._array_type = None if images else data.features[self._column].dtype
        self._label_column = labels[0] if labels else None
        self._classes = list(data.features[labels[0]].names or []) if labels else []
        if images:  # the files as they are, instead of decoded
            self._data = data.cast_column(self._column, datasets.Image(decode=False))
        else:
            self._data = data.with_format("numpy")
        self._images = self._data.select_columns(self._column)
        self._title = f"{folder.name}/{split}"

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._title}/{index}"

    def label(self, index: int) -> int | None:
        if self._label_column is None:
            return None
        label = self._data.data.column(self._label_column)[index].as_py()
        return None if label is None or label < 0 else int(label)

    def labels(self) -> np.ndarray | None:
        if self._label_column is None:
            return None
        column = self._data.data.column(self._label_column)
        labels = column.fill_null(-1).to_numpy().astype(np.int64)
        beyond = np.flatnonzero(labels >= (len(self._classes) or np.inf))
        if len(beyond):
            raise UserError(
                f"{self._title}: row {beyond[0]} has the label {labels[beyond[0]]}, but its column"
                f" {self._label_column} names {len(self._classes)} classes; correct the data set"
            )
        return known_labels(labels)

    def classes(self) -> list[str] | None:
        return self._classes or None

    def encoded(self, index: int) -> bytes:
        image = self._images[index][self._column]
        if image is None:
            raise BadImage(self.name(index), "no image in this row")
        if self._array_type:  # as if it were a file too
            file = io.BytesIO()
            np.save(file, np.asarray(image, self._array_type))
            return file.getvalue()
        if image["bytes"] is not None:
            content: bytes = image["bytes"]
            return content
        if image["path"] is None:
            raise BadImage(self.name(index), "no image in this row")
        return read_file(image["path"])


def _load(folder: Path, split: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files make it raise errors of many kinds
        raise UserError(
            f"{folder}: is no data set saved with save_to_disk ({error}); check data.root_path and"
            " data.image_folder"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    for name in SPLIT_NAMES[split]:
        if name in loaded:
            return loaded[name]
    raise UserError(
        f'{folder}: has the splits {list(loaded)}, but none for "{split}"'
        f" (looked for {', '.join(SPLIT_NAMES[split])})"
    )


def _require_ends(data: Any) -> None:
    """Refuse files cut between two batches of rows: `datasets` reads the rows before the cut."""
    for file in data.cache_files:
        with open(file["filename"], "rb") as stream:
            stream.seek(-len(END_OF_ARROW), os.SEEK_END)
            if stream.read() != END_OF_ARROW:
                raise UserError(
                    f"{file['filename']}: has no end, only {len(data)} rows can be read; copy or"
                    " save the data set again"
                )
