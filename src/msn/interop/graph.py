"""Portable graphs of an encoder: ONNX and `torch.export`, one output, any batch size."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn.config.sizes import ResNetSize
from msn.interop.weights import Weights
from msn.models.encoder import MSN_TAPS, NORMED
from msn.runtime.errors import UserError
from msn.runtime.files import replacing

Tap = Literal["cls", "cls_prenorm", "patches", "patch_mean", "projection", "logits"]
TAPS: tuple[Tap, ...] = get_args(Tap)
OPSETS = range(18, 24)


class Graph(nn.Module):
    """An encoder as one function of images.

    Args:
        weights: of the encoder.
        tap: what comes out; None takes `cls`, of a ResNet `patch_mean`. `cls`: class token after
            the final norm, (B, D); `cls_prenorm`: before it, as the low-shot and linear evaluations
            read it; `patches`: normalized patch tokens, or the places of a ResNet's last map,
            (B, N, D); `patch_mean`: their mean, (B, D); `projection`: the head's output,
            (B, out_dim); `logits`: of the classifier, (B, K).
        normalize: take images in the scale 0 to 1 and normalize them inside.

    Raises:
        UserError: the weights have no head or classifier for the tap.
    """

    def __init__(self, weights: Weights, tap: Tap | None, *, normalize: bool) -> None:
        super().__init__()
        if tap == "projection" and not weights.head:
            raise UserError("tap projection: these weights have no projection head; choose cls")
        if tap == "logits" and weights.classifier is None:
            raise UserError("tap logits: these weights have no classifier; choose cls")
        self.encoder = weights.build()
        if isinstance(weights.architecture.size, ResNetSize):
            if tap in ("cls", "cls_prenorm"):
                raise UserError(f"tap {tap}: a ResNet has no class token; choose patch_mean")
            tap = tap or "patch_mean"
        self.tap = tap or "cls"
        self.classifier: nn.Module = nn.Identity()
        if weights.classifier is not None:
            classes, width = weights.classifier.weight.shape
            self.classifier = nn.Linear(width, classes)
            self.classifier.load_state_dict(weights.classifier.tensors())
            self.unit_length = weights.classifier.unit_length
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in weights.normalization)
        self.register_buffer("mean", mean if normalize else torch.zeros_like(mean))
        self.register_buffer("std", std if normalize else torch.ones_like(std))
        self.normalize = normalize
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the output that the tap names, from images (B, C, H, W)."""
        if self.normalize:
            images = (images - self.mean) / self.std
        if self.tap == "cls_prenorm":
            return self.encoder.features(images)
        if self.tap == "projection":
            features: Tensor = self.encoder(images)
            return features
        if self.tap in ("patches", "patch_mean"):
            patches = self.encoder.patch_tokens(images)
            return patches if self.tap == "patches" else patches.mean(dim=1)
        token = self.encoder.features(images, NORMED if self.encoder.num_heads else MSN_TAPS)
        if self.tap == "cls":
            return token
        logits: Tensor = self.classifier(F.normalize(token, dim=-1) if self.unit_length else token)
        return logits


def write_onnx(path: Path, graph: Graph, images: Tensor, *, opset: int = 18) -> None:
    """Write a graph as one ONNX file, checked by running it.

    Args:
        path: to write.
        graph: to trace.
        images: (2, C, H, W) to trace and check with; the size H x W is fixed in the file, the
            batch is free.
        opset: version of the operators.

    Raises:
        UserError: what it takes is not installed, the version is not known, or the file does not
            give the same features.
    """
    _require_installed("onnx", "onnxscript", "onnxruntime")
    if opset not in OPSETS:
        known = f"{OPSETS.start} to {OPSETS.stop - 1}"
        raise UserError(f"--opset {opset}: not supported; use one of {known}")
    with replacing(path) as temporary, _exporter_silenced():
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None
        program.save(temporary)
        _check_onnx(temporary, graph, images, path)


def write_torch(path: Path, graph: Graph, images: Tensor) -> None:
    """Write a graph with `torch.export`, to be read by `torch.export.load(path).module()`.

    Arguments as for `write_onnx`.
    """
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(graph, (images,), dynamic_shapes={"images": batch})
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def _check_onnx(temporary: Path, graph: Graph, images: Tensor, path: Path) -> None:
    """Run an ONNX file on another batch size than it was traced with, and compare the features."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(temporary.read_bytes(), options)
    (found,) = session.run(None, {"images": images[:1].numpy()})
    expected = graph(images[:1])
    error = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max()
    if not error < 1e-4:
        raise UserError(f"{path}: onnxruntime gives other features (by {error:.1e}); not written")


@contextmanager
def _exporter_silenced() -> Iterator[None]:
    """Silence the exporter's notes on constants that it did not fold and on deprecations."""
    logger = logging.getLogger("onnxscript.optimizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _require_installed(*libraries: str) -> None:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not installed; run: pip install 'msn-pretraining[onnx]'"
        )
