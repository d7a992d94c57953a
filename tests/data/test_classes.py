"""Classes by name, in every kind of source, and what a label is."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from msn.data.classes import Splits, labeled_splits, split_notes
from msn.data.sources.base import ArraySource
from msn.data.sources.labels import read_labels
from msn.runtime.errors import UserError
from tests.support.made import MAKERS, add, encoded, images
from tests.support.pets import TRAIN, make_pets, make_split
from tests.support.sources import opened


def array(labels: Sequence[int], names: list[str] | None = None) -> ArraySource:
    pixels = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return ArraySource({"images": pixels}, np.array(labels), title="array", classes=names)


def told(found: Splits) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Labels of the chosen images of both splits; the names of all classes."""
    train, val = (s.labels[s.chosen].tolist() for s in (found.train, found.val))
    return train, val, found.names


def folders(root: Path) -> Splits:
    place: dict[str, object] = {"source": "folder", "root_path": str(root)}
    return labeled_splits(opened(place), opened(place, "val"))


def test_classes_of_folders_are_matched_by_name(tmp_path: Path) -> None:
    found = folders(make_pets(tmp_path))
    assert (found.classes, found.names, found.notes) == (3, TRAIN, ())
    assert found.val.labels.tolist() == [1] * 4 + [2] * 4
    (tmp_path / "val/ant").mkdir()
    (tmp_path / "train/dog").mkdir()
    for junk in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        make_split(tmp_path / "train" / junk, ["cat"])
        (tmp_path / "train/bee" / junk).mkdir()
        (tmp_path / "train/bee" / junk / "bee0.png").touch()
    (tmp_path / "train/ant/._ant0.png").touch()
    again = folders(tmp_path)
    assert told(again) == told(found)
    assert again.notes == (
        "1 class of train without images: dog",
        "1 class of val without images: ant",
    )


def test_classes_that_train_lacks_count_as_errors(tmp_path: Path) -> None:
    found = folders(make_pets(tmp_path, val=("bee", "cow", "dog")))
    assert found.val.labels.tolist() == [1] * 4 + [3] * 4 + [4] * 4
    assert (found.classes, found.names) == (3, (*TRAIN, "cow", "dog"))
    assert found.notes == (
        "2 classes of val not in train: cow, dog; 8 of 12 val images count as errors",
    )
    with pytest.raises(UserError, match=r"no class of val \(cow\) is one of train \(ant, bee, cat"):
        folders(make_pets(tmp_path / "other", val=("cow",)))


def test_numbers_are_compacted_and_matched_by_number() -> None:
    train, val = array([4_000_000_000, 7, 7, -2, 9]), array([9, -1, 8, 7])
    found = labeled_splits(train, val)
    assert told(found) == ([2, 0, 0, 1], [1, 3, 0], ("7", "9", "4000000000", "8"))
    assert found.notes == (
        "1 of 5 train images have no label and are left out",
        "1 of 4 val images have no label and are left out",
        "1 class of val not in train: 8; 1 of 3 val images count as errors",
    )
    kept = labeled_splits(array([7, 9]), array([9, 8, 11]), num_classes=10)
    assert told(kept)[:2] == ([7, 9], [9, 10, 11])
    assert (kept.classes, kept.names[7], kept.names[10:]) == (10, "7", ("8", "11"))
    with pytest.raises(UserError, match=r"of 10 classes, more than data\.num_classes 9"):
        labeled_splits(array([7, 9]), array([9]), num_classes=9)
    named = labeled_splits(array([0, 1], ["cat", "ant"]), array([1, 0], ["cat", "bee"]))
    assert told(named) == ([0, 1], [2, 0], ("cat", "ant", "bee"))


@pytest.mark.parametrize(
    ("limit", "positions"), [(None, [0, 1, 3, 4, 5]), (3, [0, 1, 4]), (9, [0, 1, 3, 4, 5])]
)
def test_a_limit_takes_evenly_spaced_labels(limit: int | None, positions: list[int]) -> None:
    source = array([1, 1, -1, 2, 2, 2])
    assert labeled_splits(source, source, max_images=limit).val.chosen.tolist() == positions


def test_a_split_without_labels_is_refused() -> None:
    for labels in (None, np.array([-1, -5])):
        bare = ArraySource({"images": np.zeros((2, 2, 2, 1), np.uint8)}, labels, title="bare")
        assert bare.labels() is None
        assert bare.read(1).label is None
        assert split_notes(bare, "val") == []
        with pytest.raises(UserError, match=r"the val split has no labels.*logging\.probe\.root_p"):
            labeled_splits(array([0, 1]), bare, section="logging.probe")


def test_the_reason_is_that_of_the_source(tmp_path: Path) -> None:
    for name, rule in {
        "folder": "a sub-folder for each class",
        "list": "a label behind each path (in a CSV file, a column label)",
        "tar": "a member .cls, or .json with a label in it, for each image",
    }.items():
        root = tmp_path / name
        (root / "train").mkdir(parents=True)
        (root / "train/a.png").write_bytes(encoded(images(20)[0]))
        (root / "list.csv").write_text("path,species\ntrain/a.png,cat\n")
        with tarfile.open(root / "train/a.tar", "w") as shard:
            shard.add(root / "train/a.png", "a.png")
        place = {"source": name, "root_path": str(root), "image_list": str(root / "list.csv")}
        source = opened(place)
        with pytest.raises(UserError) as caught:
            labeled_splits(source, source)
        assert str(caught.value) == (
            f"the train split has no labels; evaluation needs {rule}"
            " (data.root_path, data.image_folder)"
        )


def test_labels_as_text() -> None:
    def read(*texts: str) -> tuple[list[int], int]:
        found = read_labels(texts, lambda index: f"row {index + 1}")
        return found["labels"].tolist(), len(found["class_ends"])

    assert read("3", "-1", "+4", "-0", "9223372036854775807") == ([3, -1, 4, 0, 2**63 - 1], 0)
    assert read("-1", "-7") == ([], 0)
    assert read("dog", "-1", "7", "dog", "1_0") == ([2, -1, 1, 2, 0], 3)
    assert read() == ([], 0)
    for text in ("9223372036854775808", "1" + "0" * 5000):
        with pytest.raises(UserError, match=r"row 2 has the label \d{19,40}; a label is the name"):
            read("1", text)


def test_classes_and_labels_of_lists(tmp_path: Path) -> None:
    def listed(split: str, *labels: str) -> None:
        lines = [f"{i}.png\t{label}\n" for i, label in enumerate(labels)]
        (tmp_path / f"{split}.txt").write_text("".join(lines))

    def found() -> Splits:
        place: dict[str, object] = {"source": "list", "root_path": None}
        place |= {"image_list": str(tmp_path / "{split}.txt")}
        return labeled_splits(opened(place), opened(place, "val"))

    listed("train", "ant", "bee", "cat", "-1")
    listed("val", "cat", "bee")
    assert told(found()) == ([0, 1, 2], [2, 1], TRAIN)
    listed("train", "2", "5", "-1")
    listed("val", "5", "2", "-1")
    assert told(found()) == ([0, 1], [1, 0], ("2", "5"))
    listed("val", "5", "9" * 30)
    with pytest.raises(UserError, match=r"val\.txt: row 2, 1\.png, has the label 9{30}; a label"):
        found()


def test_classes_and_labels_of_shards(tmp_path: Path) -> None:
    import tarfile

    png = encoded(images(20)[0])
    for split, labels in (("train", ("ant", "bee", "cat", "-1")), ("val", ("cat", "bee"))):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as shard:
            for i, label in enumerate(labels):
                add(shard, f"./{i}.png", png)
                add(shard, f"./{i}.cls", f"{label}\n".encode())
            add(shard, "__MACOSX/9.png", png)
            add(shard, "a/.hidden/9.png", png)
    place: dict[str, object] = {"source": "tar", "root_path": str(tmp_path)}
    assert told(labeled_splits(opened(place), opened(place, "val"))) == ([0, 1, 2], [2, 1], TRAIN)


def test_classes_and_labels_of_hugging_face(tmp_path: Path) -> None:
    import datasets

    def save(name: str, **splits: tuple[list[str], list[int | None]]) -> dict[str, object]:
        made = {}
        for split, (names, labels) in splits.items():
            kinds = datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
            )
            files = [{"bytes": encoded(images(20)[0]), "path": None}] * len(labels)
            made[split] = datasets.Dataset.from_dict({"image": files, "label": labels}, kinds)
        datasets.disable_progress_bars()
        datasets.DatasetDict(made).save_to_disk(str(tmp_path / name))
        return {"source": "huggingface", "root_path": str(tmp_path / name)}

    place = save("a", train=([*TRAIN], [0, 1, 2, -1, None]), test=(["cat", "bee"], [0, 1, 1]))
    train = opened(place)
    found = labeled_splits(train, opened(place, "val"))
    assert told(found) == ([0, 1, 2], [2, 1, 1], TRAIN)
    assert found.notes == ("2 of 5 train images have no label and are left out",)
    assert [train.read(i).label for i in range(5)] == [0, 1, 2, None, None]
    assert opened(save("b", train=([*TRAIN], [-1, -1]))).labels() is None


def test_classes_of_packed_sets(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100", "stl10"):
        assert opened(MAKERS[name](tmp_path / name)).classes() == ["a", "b", "c"]
    for name in ("idx", "digits"):
        assert opened(MAKERS[name](tmp_path / name)).classes() is None
    labels = tmp_path / "stl10/stl10_binary/train_y.bin"
    labels.write_bytes(b"\0" + labels.read_bytes()[1:])
    found = opened({"source": "stl10", "root_path": str(tmp_path / "stl10")}).labels()
    assert found is not None
    assert found.tolist()[:3] == [-1, 1, 2]
    (tmp_path / "cifar10/cifar-10-batches-py/batches.meta").unlink()
    assert opened({"source": "cifar10", "root_path": str(tmp_path / "cifar10")}).classes() is None
