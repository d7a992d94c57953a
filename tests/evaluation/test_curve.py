from pathlib import Path

import numpy as np
import pytest
import torch

from msn.evaluation.curve import LabelSet, Outcome, as_json, label_curve, plot, points, table
from msn.evaluation.logistic import Accuracy, accuracy, fit
from tests.evaluation.test_logistic import blobs


def outcomes() -> list[Outcome]:
    return [
        Outcome("a", 10, 1.0, 0.1, False, Accuracy(40.0, 60.0, {0: 30.0, 1: 50.0})),
        Outcome("b", 10, 1.0, 0.1, False, Accuracy(60.0, 80.0, {0: 50.0, 1: 70.0})),
        Outcome("c", 128, 12.811, 0.1, False, Accuracy(90.0, None, {0: 90.0, 1: 90.0})),
        Outcome("a", 10, 1.0, 0.3, True, Accuracy(50.0, 70.0, {0: 30.0, 1: 70.0})),
    ]


@pytest.mark.slow
def test_each_set_of_labels_gets_its_classifier() -> None:
    features, labels = blobs(7)
    test, truth = blobs(7, seed=1)
    sets = [LabelSet("few", torch.arange(14)), LabelSet("all", torch.arange(len(labels)))]
    heard: list[Outcome] = []
    found = label_curve(
        features, labels, test, truth, sets=sets, lambdas=[0.1, None], say=heard.append
    )
    assert heard == found
    assert [one[:3] for one in found] == [("few", 14, 2)] * 2 + [("all", 84, 12)] * 2
    assert [one.auto for one in found] == [False, True] * 2
    expected = accuracy(fit(features[:14], labels[:14], lambd=0.1), test, truth)
    assert found[0].accuracy == expected
    assert found[3].accuracy == accuracy(fit(features, labels, lambd=found[3].lambd), test, truth)


def test_sets_of_one_size_are_averaged() -> None:
    one, auto, many = points(outcomes())
    assert (one.images_per_class, one.lambd, one.sets) == (1, 0.1, 2)
    assert one.mean == 50
    assert one.std == pytest.approx(np.std([40, 60], ddof=1))
    assert one.top5 == 70
    assert one.per_class == {0: 40, 1: 60}
    assert (auto.lambd, auto.sets, auto.std) == (None, 1, 0)
    assert (many.images_per_class, many.top5) == (12.81, None)
    assert table([one, auto, many]).splitlines()[2:] == [
        "| 1 | 0.1 | 2 | 50.0 ± 14.1 | 70.0 |",
        "| 1 | auto | 1 | 50.0 | 70.0 |",
        "| 12.81 | 0.1 | 1 | 90.0 |  |",
    ]


def test_everything_is_in_the_json() -> None:
    found = as_json(outcomes(), points(outcomes()), ["cat", "dog"])
    assert found["outcomes"][1]["accuracy"]["per_class"] == {"cat": 50, "dog": 70}
    assert found["points"][0]["mean"] == 50


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_plot_is_a_picture(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"curve.{suffix}"
    plot(path, points(outcomes()))
    assert path.read_bytes().startswith(start)
