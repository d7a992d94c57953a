"""Portable graphs, run by onnxruntime and torch."""

import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from msn.config.sizes import ENCODERS, EncoderSize
from msn.interop.graph import TAPS, Graph, Tap, write_onnx, write_torch
from msn.models.encoder import NORMED
from msn.runtime.errors import UserError
from tests.support.encoders import images, random_weights, relative

pytestmark = pytest.mark.slow

WEIGHTS = random_weights(classes=5)


def by_onnxruntime(path: Path, views: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {"images": views.numpy()})[0])


def test_each_tap_is_what_it_says() -> None:
    encoder: Any = WEIGHTS.build()
    views = images(16)
    normed = encoder.tokens(views)
    assert WEIGHTS.classifier
    expected: dict[Tap, torch.Tensor] = {
        "cls": normed[:, 0],
        "cls_prenorm": encoder.features(views),
        "patches": normed[:, 1:],
        "patch_mean": normed[:, 1:].mean(dim=1),
        "projection": encoder(views),
        "logits": normed[:, 0] @ WEIGHTS.classifier.weight.T + WEIGHTS.classifier.bias,
    }
    assert set(expected) == set(TAPS)
    for tap, values in expected.items():
        assert relative(Graph(WEIGHTS, tap, normalize=False)(views), values) < 1e-5


@pytest.mark.parametrize(
    ("tap", "normalize", "size"),
    [("cls", True, (16, 16)), ("patches", False, (24, 16)), ("logits", True, (12, 12))],
)
def test_onnx_at_any_batch_size(
    tmp_path: Path, tap: Tap, normalize: bool, size: tuple[int, int]
) -> None:
    """At the image size, at a rectangle, and at a size that does not divide it."""
    graph = Graph(WEIGHTS, tap, normalize=normalize)
    write_onnx(tmp_path / "a.onnx", graph, images(*size))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    for batch in (1, 2, 5):
        views = images(*size, batch=batch)
        assert relative(by_onnxruntime(tmp_path / "a.onnx", views), graph(views)) < 1e-5


@pytest.mark.parametrize(("depth", "size"), [(12, (224, 224)), (2, (96, 96)), (2, (96, 160))])
def test_onnx_of_vit_s(tmp_path: Path, depth: int, size: tuple[int, int]) -> None:
    shape = ENCODERS["deit_small"]._replace(depth=depth)
    weights = random_weights(shape, image_size=224, with_head=False)
    graph = Graph(weights, "cls", normalize=False)
    write_onnx(tmp_path / "a.onnx", graph, images(*size))
    views = images(*size, batch=1)
    ours = weights.build().features(views, NORMED)
    assert relative(by_onnxruntime(tmp_path / "a.onnx", views), ours) < 1e-5


@pytest.mark.parametrize("size", [EncoderSize(4, 48, 3, 4), EncoderSize(None, 48, 2, 4)])
def test_torch_export_at_any_batch_size(tmp_path: Path, size: EncoderSize) -> None:
    weights = random_weights(size, image_size=32)
    graph = Graph(weights, "cls", normalize=True)
    write_torch(tmp_path / "a.pt2", graph, images(32))
    loaded = torch.export.load(tmp_path / "a.pt2").module()
    for batch in (1, 2, 5):
        views = images(32, batch=batch)
        assert relative(loaded(views), graph(views)) < 1e-5


def test_normalization_is_folded_in() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in WEIGHTS.normalization)
    inside = Graph(WEIGHTS, "cls", normalize=True)(pixels)
    outside = Graph(WEIGHTS, "cls", normalize=False)((pixels - mean) / std)
    assert relative(inside, outside) < 1e-5


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(WEIGHTS, "cls", normalize=False)
    with pytest.raises(UserError, match=r"--opset 7: not supported; use one of 18 to"):
        write_onnx(tmp_path / "a.onnx", graph, images(16), opset=7)
    with pytest.raises(UserError, match="no classifier; choose cls"):
        Graph(random_weights(), "logits", normalize=False)
    with pytest.raises(UserError, match="no projection head; choose cls"):
        Graph(random_weights(with_head=False), "projection", normalize=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript not installed; run: pip install 'msn-pre"):
        write_onnx(tmp_path / "a.onnx", graph, images(16))
    assert list(tmp_path.iterdir()) == []
