"""Maps of the digits: trustworthy, the same for the same seed, and as the command draws them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from msn.cli.main import main
from msn.visualize.map import plane
from tests.support.encoders import random_weights
from tests.support.pictures import DIGITS, drawn, saved


def test_tsne_of_the_digits_is_trustworthy_and_repeats() -> None:
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:300], labels[:300].astype(np.int64)
    found, again = (plane(images, labels) for _ in range(2))
    assert (found.places == again.places).all()
    by_pca = plane(images, labels, method="pca")
    assert found.trust >= 0.95
    assert found.trust > by_pca.trust
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    np.testing.assert_allclose(by_pca.places, PCA(2).fit_transform(unit), atol=1e-8)


def test_the_command(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    words = ["map", "--weights", str(file), *DIGITS, "--count", "12"]
    picture, numbers = drawn(tmp_path / "a.png", *words)
    assert picture.shape == (880, 880, 3)
    assert np.shape(numbers["places"]) == (12, 2)
    assert len(numbers["labels"]) == len(numbers["names"]) == 12


def test_wrong_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    words = ["visualize", "map", "--weights", str(file), *DIGITS, "--out", str(tmp_path / "x.png")]
    wrong = [(["--count", "3"], "3 images: a map needs at least 4")]
    if importlib.util.find_spec("umap") is None:
        wrong.append((["--method", "umap"], "umap-learn is not installed"))
    for more, message in wrong:
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x.png").exists()
