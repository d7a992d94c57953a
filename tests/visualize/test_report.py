import csv
import json
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from msn.config.protocol import PROTOCOL
from msn.evaluation.features import EvalSet
from msn.evaluation.knn import knn
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LowShot, low_shot
from msn.runtime.errors import UserError
from msn.visualize import report
from msn.visualize.report import (
    RIGHT,
    WRONG,
    Representation,
    Scores,
    markdown,
    read_loss,
    table,
    write_report,
)

CLASSES = 3


def split(per_class: int, seed: int, channels: int = 1) -> EvalSet:
    """Images of noise, the labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(per_class)
    shape = (len(labels), 8, 8, channels)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return EvalSet(images, labels, np.arange(len(labels)))


def represent(name: str, train: EvalSet, val: EvalSet, signal: float) -> Representation:
    """Features that tell the class the better the larger `signal`."""
    generator = torch.Generator().manual_seed(0)
    features = [
        signal * torch.eye(CLASSES)[labels] + torch.randn(len(labels), CLASSES, generator=generator)
        for labels in (train.labels, val.labels)
    ]
    return Representation(name, *features)


def write_log(path: Path, rows: int = 30) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "loss"])
        writer.writerows([1, 10 * i, 3 / (1 + i)] for i in range(rows))


def make(folder: Path, per_class: int = 12, channels: int = 1) -> tuple[str, EvalSet, EvalSet]:
    train, val = split(per_class, 0, channels), split(5, 1, channels)
    rows = [represent(name, train, val, s) for name, s in (("poor", 0.0), ("good", 3.0))]
    text = write_report(
        train=train,
        val=val,
        representations=rows,
        csv_path=folder / "run_r0.csv",
        folder=folder,
        tag="run",
        protocol=PROTOCOL._replace(draws=4, k=5),
        skipped={"a.png": "torn"},
    )
    return text, train, val


@pytest.mark.slow
def test_numbers_are_those_of_the_evaluations(tmp_path: Path) -> None:
    text, train, val = make(tmp_path)
    good = represent("good", train, val, 3.0)
    data = (good.train, train.labels, good.val, val.labels)
    expected = [low_shot(*data, images_per_class=count, draws=4) for count in (1, 2, 5)]
    top1 = knn(*data, k=5).top1
    fitted = fit(prepare(good.train.double()), train.labels, lambd=0.0025)
    logistic = accuracy(fitted, prepare(good.val.double()), val.labels).top1

    saved = json.loads((tmp_path / "run-report.json").read_text())
    assert saved["skipped_images"] == {"a.png": "torn"}
    assert [one["name"] for one in saved["representations"]] == ["poor", "good"]
    assert (saved["unit"], saved["draws"], saved["k"]) == ("percent", 4, 5)
    assert saved["representations"][1]["knn"] == top1
    assert saved["representations"][1]["logistic"] == logistic
    assert saved["representations"][1]["low_shot"] == [result._asdict() for result in expected]
    cells = [f"{result.mean:.1f} ± {result.std:.1f}" for result in expected]
    assert text.splitlines()[-1].split("   ")[0] == "good"
    assert [part.strip() for part in text.splitlines()[-1].split("  ") if part.strip()] == [
        "good",
        f"{top1:.1f}",
        *cells,
        f"{logistic:.1f}",
    ]


def test_table() -> None:
    rows = [
        Scores("raw pixels", 98.64, [LowShot(1, [60.0, 70.0], 65.0, 7.07)], 99.0),
        Scores("trained", 100.0, [LowShot(1, [100.0, 100.0], 100.0, 0.0)], 8.0),
    ]
    assert table(rows, 20).splitlines() == [
        "accuracy in %   20-NN        1-shot   logistic regression, all labels",
        "-" * 69,
        "raw pixels       98.6    65.0 ± 7.1                              99.0",
        "trained         100.0   100.0 ± 0.0                               8.0",
    ]
    assert markdown(rows, 20).splitlines() == [
        "| accuracy in % | 20-NN | 1-shot | logistic regression, all labels |",
        "| --- | --- | --- | --- |",
        "| raw pixels | 98.6 | 65.0 ± 7.1 | 99.0 |",
        "| trained | 100.0 | 100.0 ± 0.0 | 8.0 |",
    ]


def test_columns_that_a_class_cannot_fill_are_left_out(tmp_path: Path) -> None:
    text, _, _ = make(tmp_path, per_class=4)
    assert "2-shot" in text
    assert "5-shot" not in text


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("logged", [0, 1, 30])
@pytest.mark.slow
def test_picture_is_written(tmp_path: Path, channels: int, logged: int) -> None:
    if logged:
        write_log(tmp_path / "run_r0.csv", logged)
    before = "matplotlib.pyplot" in sys.modules
    make(tmp_path, channels=channels)
    content = (tmp_path / "run-report.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000
    assert ("matplotlib.pyplot" in sys.modules) == before
    names = {"run-report.json", "run-report.png"} | ({"run_r0.csv"} if logged else set())
    assert {path.name for path in tmp_path.iterdir()} == names


def picture(trained: Representation, train: EvalSet, val: EvalSet) -> Figure:
    results = {"accuracy in %": "trained", "20-NN": "75.0", "1-shot": "50.0 ± 0.0"}
    return report._picture(train, val, trained, results, ([0, 10, 20], [3.0, 2.0, 1.0]), "run")


def test_frames_tell_right_neighbors_from_wrong_ones() -> None:
    train, val = split(12, 0), split(5, 1)
    trained = represent("trained", train, val, 1.0)
    similarity = torch.cosine_similarity(trained.val[:3, None], trained.train[None], dim=2)
    nearest = similarity.argsort(dim=1, descending=True)[:, :5]  # val begins with labels 0, 1, 2
    expected = np.where(train.labels[nearest] == torch.arange(3)[:, None], RIGHT, WRONG)

    grid = picture(trained, train, val).axes[1]
    frames = [patch for patch in grid.patches if isinstance(patch, Rectangle)]
    colors = [to_hex(frame.get_edgecolor()) for frame in frames]
    assert colors == expected.ravel().tolist()
    assert set(colors) == {RIGHT, WRONG}
    # Not by color alone: a cross in each frame that is wrong, and one in the key.
    crosses = [line for line in grid.lines if line.get_marker() == "X"]
    assert len(crosses) == colors.count(WRONG) + 1
    shown = [np.asarray(image.get_array()) for image in grid.images]
    wanted = [val.images[1], *train.images[nearest[1]]]  # the second row
    for found, image in zip(shown[6:12], wanted, strict=True):
        assert np.array_equal(found, image[..., 0].numpy())


def test_loss_curve_shows_the_log() -> None:
    train, val = split(12, 0), split(5, 1)
    figure = picture(represent("trained", train, val, 1.0), train, val)
    [curve] = figure.axes[0].lines  # a mean of one is none
    assert cast(np.ndarray, curve.get_xydata()).tolist() == [[0, 3], [10, 2], [20, 1]]
    heading = [text.get_text() for text in figure.texts]
    assert heading == ["run", "trained, accuracy in %:   20-NN  75.0    1-shot  50.0 ± 0.0"]


def test_read_loss(tmp_path: Path) -> None:
    assert read_loss(tmp_path / "none.csv") == ([], [])
    write_log(tmp_path / "run_r0.csv", 3)
    assert read_loss(tmp_path / "run_r0.csv") == ([0, 10, 20], [3.0, 1.5, 1.0])


def test_many_classes_give_ten_queries_spread_over_them() -> None:
    labels = torch.arange(100).repeat(2)
    assert report._one_per_class(labels, 10).tolist() == list(range(0, 100, 10))
    assert report._one_per_class(torch.tensor([5, 2, 5, 9]), 10).tolist() == [1, 0, 3]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run-report\.json: cannot be written"):
        make(tmp_path / "missing")
