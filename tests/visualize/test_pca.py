"""Principal components against NumPy's SVD and hand-made splits; as the command draws them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.evaluation.frozen import frozen
from msn.visualize.pca import Basis, Components, fit, load_basis, pca
from msn.visualize.pca import _foreground as foreground
from msn.visualize.sheet import GAP, HEADER, LEAST
from tests.support.encoders import random_resnet, random_weights
from tests.support.pictures import DIGITS, drawn, photographs, saved


def test_a_basis_is_the_singular_vectors_with_their_largest_loading_positive() -> None:
    tokens = np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8) + 5
    basis = fit(tokens)
    centered = tokens - tokens.mean(axis=0)
    _, values, vectors = np.linalg.svd(centered, full_matrices=False)
    largest = np.abs(vectors).argmax(axis=1)
    vectors *= np.sign(vectors[range(7), largest])[:, None]
    np.testing.assert_allclose(basis.components, vectors[:3], atol=1e-8)
    np.testing.assert_allclose(basis.project(tokens), centered @ vectors[:3].T, atol=1e-8)
    np.testing.assert_allclose(basis.explained, (values**2 / (values**2).sum())[:3], atol=1e-8)
    low, high = np.percentile(centered @ vectors[:3].T, (2, 98), axis=0)
    np.testing.assert_allclose((basis.low, basis.high), (low, high), atol=1e-8)


@pytest.mark.parametrize("tokens", [np.ones((9, 5)), np.arange(4.0).reshape(2, 2)])
def test_few_dimensions_give_no_nan(tokens: np.ndarray) -> None:
    basis = fit(tokens)
    assert all(np.isfinite(array).all() for array in basis)
    assert basis.explained.sum() <= 1 + 1e-12


def test_images_share_a_basis_and_their_order_does_not_count() -> None:
    encoder = frozen(random_weights())
    generator = np.random.default_rng(1)
    views = [generator.integers(256, size=(s, 20, 3), dtype=np.uint8) for s in (16, 23)]
    found, swapped = pca(encoder, views), pca(encoder, views[::-1])
    assert [one.shape for one in found.maps] == [(4, 5, 3), (5, 5, 3)]
    assert found.images[1].shape == (20, 20, 3)
    for one, other in zip(found.maps, swapped.maps[::-1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    pixels = encoder._normalized(encoder.model, torch.from_numpy(views[0])[None])
    tokens = encoder.model.patch_tokens(pixels)[0].double().numpy()
    np.testing.assert_allclose(found.maps[0].reshape(20, 3), found.basis.project(tokens), atol=1e-8)


def test_the_foreground_has_less_of_the_border() -> None:
    for sign in (1, -1):
        cells = np.random.default_rng(2).normal(size=(6, 8, 3)) * 0.1
        cells[2:4, 3:6, 0] += 5 * sign
        expected = np.zeros((6, 8), bool)
        expected[2:4, 3:6] = True
        other = np.zeros((3, 3, 3))
        first, second = foreground([cells, other])
        assert (first == expected).all()
        assert not second.any()


def test_a_cell_has_the_color_of_its_coordinates() -> None:
    basis = Basis(np.zeros(3), np.eye(3), np.zeros(3), np.zeros(3), np.ones(3))
    cells = np.zeros((2, 3, 3))
    cells[1, 2], cells[0, 1] = (1, 0.5, -3), (0, 2, 1)
    front = np.ones((2, 3), bool)
    front[0, 1] = False
    image = np.zeros((8, 12, 1), np.uint8)
    picture = Components([image], [cells], [front], basis).picture()
    zoom = -(-LEAST // 12)
    right = picture[HEADER:, GAP + 12 * zoom + GAP :]
    half = 2 * zoom
    assert right[3 * half, 5 * half].tolist() == [255, 127, 0]
    assert right[half, 3 * half].tolist() == [0, 51, 51]


def test_a_saved_basis_gives_the_same_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    basis = tmp_path / "basis.safetensors"
    words = ["pca", "--weights", str(file), *DIGITS, "--count", "3", "--foreground"]
    picture, numbers = drawn(tmp_path / "a.png", *words, "--save-basis", str(basis))
    assert picture.shape == (HEADER + 3 * (LEAST + GAP), GAP + 2 * (LEAST + GAP), 3)
    explained = numbers["explained_variance"]
    assert sorted(explained, reverse=True) == explained
    assert sum(explained) <= 1
    again, _ = drawn(tmp_path / "b.png", *words, "--basis", str(basis))
    assert (again == picture).all()
    assert load_basis(basis, 48).components.shape == (3, 48)
    other = saved(tmp_path / "other.pth.tar", random_resnet(in_chans=1))
    words[2] = str(other)
    assert main(["visualize", *words, "--basis", str(basis), "--out", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert "is no basis for tokens of width" in said
    assert not (tmp_path / "x.png").exists()


def test_a_resnet_and_five_channels(tmp_path: Path) -> None:
    file = saved(tmp_path / "resnet.pth.tar", random_resnet(in_chans=5))
    folder = photographs(tmp_path / "images", (80, 100, 5), (70, 70, 5))
    words = ["pca", "--weights", str(file), "--images", str(folder), "--keep-aspect"]
    _, numbers = drawn(tmp_path / "a.png", *words, "--image-size", "64")
    assert numbers["images"]["grid"] == [[2, 2], [2, 2]]
