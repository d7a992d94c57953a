"""Neighbors against scikit-learn's, with ties and the queries themselves; as the command draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from msn.cli.main import main
from msn.evaluation.knn import neighbors
from msn.visualize.neighbors import of_other_class
from msn.visualize.sheet import GAP, HEADER, LEAST
from tests.support.encoders import random_weights
from tests.support.pictures import DIGITS, drawn, photographs, saved


def test_neighbors_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    train, queries = (torch.randn(n, 12, generator=generator) for n in (200, 30))
    distance, expected = (
        NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
        .fit(train.double().numpy())
        .kneighbors(queries.double().numpy())
    )
    similarity, found = neighbors(train, queries, k=7)
    assert (found.numpy() == expected).all()
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-8)


def test_of_equal_ones_the_first_comes_first_and_none_is_its_own() -> None:
    train = torch.randn(20, 8).repeat(4, 1)  # images i, i + 20, i + 40, i + 60 are the same
    own = torch.tensor([25, -1])
    _, found = neighbors(train, train[[25, 3]], k=4, own=own)
    assert found[0, :3].tolist() == [5, 45, 65]
    assert found[1].tolist() == [3, 23, 43, 63]


def test_a_class_is_another_only_if_both_are_known() -> None:
    queries = np.array(["a", None], dtype=object)
    nearest = np.array([["a", "b", None], ["a", None, "b"]], dtype=object)
    assert of_other_class(queries, nearest).tolist() == [[False, True, False], [False] * 3]


def test_the_command(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    words = ["neighbors", "--weights", str(file), "--k", "3"]
    same = [*DIGITS, "--split", "train", "--count", "4"]
    picture, numbers = drawn(tmp_path / "a.png", *words, *same)
    assert picture.shape == (4 * (LEAST + GAP + HEADER), GAP + 4 * (LEAST + GAP), 3)
    for query, found in zip(numbers["queries"], numbers["neighbors"], strict=True):
        assert query not in found
        assert len(set(found)) == 3
    assert (np.diff(numbers["similarity"]) <= 0).all()


def test_files_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights())
    folder = photographs(tmp_path / "images", (30, 40, 3), (64, 24, 3), (20, 20, 1))
    words = ["neighbors", "--weights", str(file), "--images", str(folder)]
    _, numbers = drawn(tmp_path / "a.png", *words)
    assert [sorted(each) for each in numbers["indices"]] == [[1, 2], [0, 2], [0, 1]]
    again = folder / ".." / "images" / "1.png"
    _, numbers = drawn(tmp_path / "b.png", *words, "--query", str(again), "--k", "1")
    assert numbers["indices"] in ([[0]], [[2]])
    assert main(["visualize", *words[:3], "--images", str(again), "--out", "x.png"]) == 2
    assert "the gallery holds no other image" in capsys.readouterr().err
