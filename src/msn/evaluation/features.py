"""Compute features of images, in shards that survive an interruption, and cache them.

A cache is a folder with one sub-folder for each key, and the key is made of all that changes the
features: weights, taps, evaluation view, normalization, precision, and the images themselves. What
is found under a key is therefore what would be computed again.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.config.sections.data import Interpolation
from msn.data.image import BadImage
from msn.data.labeled import Batch, CenterCrop, LabeledSet, Transform, batches_in_turn
from msn.data.sources import Source
from msn.data.unreadable import Unreadable
from msn.data.views import eval_view
from msn.evaluation.frozen import FrozenEncoder
from msn.models.encoder import MSN_TAPS, Taps
from msn.runtime.devices import threads_for
from msn.runtime.errors import UserError
from msn.runtime.files import replacing, writing

FORMAT = 1
SHARD = 8192  # images
PIXELS = 32  # largest side of images whose raw pixels are a representation


Encode = Callable[[Tensor], Tensor]
Normalize = Callable[[Tensor], Tensor]


class EvalSet(NamedTuple):
    """Evaluation images of a labeled split, ready to be encoded again and again."""

    images: Tensor  # uint8 (N, S, S, C), CPU
    labels: Tensor  # int64 (N,), CPU
    indices: np.ndarray  # int64 (N,), of the images in their source


class Features(NamedTuple):
    """What an encoder makes of images, in the order in which they were asked for."""

    features: Tensor  # float32 (N, D), CPU
    labels: Tensor | None  # int64 (N,), CPU; None of an unlabeled source
    names: list[str]
    indices: np.ndarray  # int64 (N,), of the images in their source: without bad ones


def evaluation_images(
    images: LabeledSet,
    *,
    image_size: int,
    interpolation: Interpolation = "bilinear",
    num_workers: int = 0,
    unreadable: Unreadable | None = None,
) -> EvalSet:
    """Make the deterministic evaluation views of labeled images, in their order.

    Args:
        images: those that are chosen.
        image_size: side S of the square views, in pixels.
        interpolation: filter of resizing.
        num_workers: processes that decode images; 0 decodes in this one.
        unreadable: gathers bad images, to be settled by the caller; None has none.

    Raises:
        UserError: an image cannot be read.
    """
    told = Unreadable() if unreadable is None else unreadable
    shape = len(images), image_size, image_size, images.source.channels
    pixels = torch.empty(shape, dtype=torch.uint8)
    good = torch.ones(len(images), dtype=torch.bool)
    view = CenterCrop(image_size, interpolation)
    made = views(images.source, images.chosen, view, batch_size=256, num_workers=num_workers)
    for place, are_good, batch in zip(pixels.split(256), good.split(256), made, strict=True):
        place.copy_(batch.images)
        are_good[[bad.row for bad in batch.bad]] = False
        told.meet(bad.image for bad in batch.bad)
    if unreadable is None:
        told.settle()
    labels = torch.from_numpy(images.labels[images.chosen])
    if good.all():  # no copy of what may be large
        return EvalSet(pixels, labels, images.chosen)
    return EvalSet(pixels[good], labels[good], images.chosen[good.numpy()])


@torch.no_grad()
def encode_all(
    encode: Encode,
    images: Tensor,
    *,
    normalize: Normalize,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Encode uint8 `images` (N, S, S, C) into features: float32 (N, D) on the CPU.

    Args:
        encode: float (B, C, S, S) -> (B, D), with the module already in eval mode.
        images: as in `EvalSet.images`.
        normalize: uint8 (B, S, S, C) on `device` -> float (B, C, S, S).
        batch_size: images per call of `encode`.
        device: where `encode` computes.
    """
    batches = (batch.to(device, non_blocking=True) for batch in images.split(batch_size))
    return torch.cat([encode(normalize(batch)).float().cpu() for batch in batches])


def raw_pixels(images: Tensor) -> Tensor:
    """Flatten uint8 images (N, S, S, C) to the baseline features (N, S*S*C) in [0, 1]."""
    return images.flatten(1).float() / 255


def extract(
    encoder: FrozenEncoder,
    source: Source,
    *,
    indices: np.ndarray | None = None,
    taps: Taps = MSN_TAPS,
    batch_size: int = 256,
    num_workers: int = 0,
    cache: Path | None = None,
    shard: int = SHARD,
    unreadable: Unreadable | None = None,
) -> Features:
    """Compute the features of the images of a source, or read them from the cache.

    Args:
        encoder: as given by `msn.load_encoder`.
        source: of images with as many channels as the encoder takes.
        indices: (N,) of the images; None takes all.
        taps: which features.
        batch_size: images at a time, on all devices together.
        num_workers: processes that decode images; 0 decodes in this one.
        cache: folder to keep them in, and to find them if they are there; None keeps nothing.
        shard: images between saves.
        unreadable: gathers bad images, to be settled by the caller; None has none.

    Raises:
        UserError: an image cannot be read, a feature is not finite, the cache cannot be written.
    """
    encoder.check(taps)
    told = Unreadable() if unreadable is None else unreadable
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
    folder = None if cache is None else _prepare(cache, encoder, source, chosen, taps)
    compute = partial(_compute, encoder, source, taps, batch_size, num_workers, told)
    parts = []
    for start in range(0, len(chosen), shard):
        images = chosen[start : start + shard]
        path = folder / f"{start:010d}.safetensors" if folder else None
        part = _read_shard(path, (len(images), encoder.width(taps))) if path else None
        if part is None:
            part = torch.full((len(images), encoder.width(taps)), torch.nan)
        missing = part.isnan().any(dim=1)  # not computed yet, or the image was bad
        if missing.any():
            part[missing] = compute(images[missing.numpy()])
            if path and not told.given_up:
                _write_tensors(path, {"features": part})
        parts.append(part)
    if unreadable is None:
        told.settle()
    features = torch.cat(parts) if parts else torch.empty(0, encoder.width(taps))
    good = ~features.isnan().any(dim=1)
    chosen, labels = chosen[good.numpy()], source.labels()
    return Features(
        features[good],
        None if labels is None else torch.from_numpy(labels[chosen]),
        [source.name(int(index)) for index in chosen],
        chosen,
    )


def key(
    encoder: FrozenEncoder, source: Source, indices: np.ndarray, taps: Taps = MSN_TAPS
) -> dict[str, Any]:
    """Collect all that the features depend on, as JSON values: the key of the cache."""
    return {
        "format": FORMAT,
        "weights": encoder.digest,
        "taps": taps._asdict(),
        "view": _view_digest(encoder),
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "precision": "bf16" if encoder.bf16 else "fp32",
        "images": len(indices),
        "source": _source_digest(source, indices),
    }


def write(
    path: Path,
    found: Features,
    *,
    classes: Sequence[str] | None = None,
    skipped: Sequence[str] = (),
) -> None:
    """Write features, labels and names to one file.

    `.npz`: arrays `features`, `labels` and `names`. `.safetensors`: tensors `features`, `labels`,
    and `names` as the UTF-8 bytes of one name on each line. Without labels there is no `labels`;
    likewise `classes`, the names of the classes by label, which another split may number otherwise,
    and `skipped`, the images that could not be read.

    Raises:
        UserError: the name ends in neither, or the file cannot be written.
    """
    check_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    texts = {"names": found.names, "classes": classes or (), "skipped": skipped}
    texts = {name: lines for name, lines in texts.items() if lines or name == "names"}
    numbers = {"features": found.features}
    if found.labels is not None:
        numbers["labels"] = found.labels
    if path.suffix == ".safetensors":
        lines = {name: _bytes(each) for name, each in texts.items()}
        _write_tensors(path, numbers | lines)
        return
    content = io.BytesIO()
    np.savez(
        content,
        allow_pickle=False,
        **{name: tensor.numpy() for name, tensor in numbers.items()},
        **{name: np.array(lines, dtype=np.str_) for name, lines in texts.items()},
    )
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _bytes(lines: Sequence[str]) -> Tensor:
    text = bytearray("\n".join(lines).encode("utf-8", "surrogateescape"))
    return torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0).byte()


def check_name(path: Path) -> None:
    """Refuse a file name that ends in no known format.

    Raises:
        UserError: it ends in neither `.safetensors` nor `.npz`.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"{path}: must end in .safetensors or .npz")


def require_finite(features: Tensor, names: Sequence[str] | None = None) -> None:
    """Refuse features that are NaN or infinite.

    Raises:
        UserError: names the first.
    """
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        which = names[first] if names else f"image {first}"
        raise UserError(
            f"{which}: its features are not finite ({int((~finite).sum())} of {len(finite)} images"
            " are concerned); the weights may be damaged, or try --precision fp32"
        )


def views(
    source: Source, indices: np.ndarray, view: Transform, *, batch_size: int, num_workers: int = 0
) -> Iterator[Batch]:
    """Load evaluation views in batches, which hold the images' indices in place of labels."""
    images = LabeledSet(source, np.arange(len(source)), indices)
    return batches_in_turn(images, view, batch_size=batch_size, num_workers=num_workers)


def _compute(
    encoder: FrozenEncoder,
    source: Source,
    taps: Taps,
    batch_size: int,
    num_workers: int,
    unreadable: Unreadable,
    indices: np.ndarray,
) -> Tensor:
    """Compute the features of some images: NaN for bad ones, and for all after giving up."""
    features = torch.full((len(indices), encoder.width(taps)), torch.nan)
    view = CenterCrop(encoder.image_size, encoder.interpolation)
    made = views(source, indices, view, batch_size=batch_size, num_workers=num_workers)
    model, size = encoder.model, encoder.image_size
    tokens = batch_size * (1 + math.prod(model.grid(size, size)))
    largest = 4 * tokens * model.embed_dim**2  # of a block's MLP
    for place, batch in zip(features.split(batch_size), made, strict=True):
        unreadable.meet(bad.image for bad in batch.bad)
        if unreadable.given_up:
            continue
        with threads_for(largest):
            part = encoder.encode(batch.images, batch.labels.tolist(), taps)
        part[[bad.row for bad in batch.bad]] = 0
        require_finite(part, [source.name(index) for index in batch.labels.tolist()])
        part[[bad.row for bad in batch.bad]] = torch.nan
        place.copy_(part)
    return features


def _prepare(
    cache: Path, encoder: FrozenEncoder, source: Source, indices: np.ndarray, taps: Taps
) -> Path:
    """Make the cache folder of these features, and write down there what they depend on."""
    about = json.dumps(key(encoder, source, indices, taps), indent=2, sort_keys=True)
    folder = cache / hashlib.sha256(about.encode()).hexdigest()[:32]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "about.json") as path:
        path.write_text(about + "\n", encoding="utf-8")
    return folder


def _view_digest(encoder: FrozenEncoder) -> str:
    """Hash the evaluation view of a test image, so that the key changes if view making does."""
    rows, columns = np.mgrid[:300, :260]
    image = np.stack([rows, columns, rows * columns // 7], axis=-1).astype(np.uint8)
    channels = np.arange(encoder.channels) % 3
    image = np.ascontiguousarray(image[..., channels])
    view = eval_view(image, encoder.image_size, encoder.interpolation)
    return hashlib.sha256(str(view.shape).encode() + view.tobytes()).hexdigest()


def _source_digest(source: Source, indices: np.ndarray) -> str:
    digest = hashlib.sha256(f"{type(source).__qualname__} {source.channels}".encode())
    for index in indices:
        try:
            stamp = source.stamp(int(index))
        except BadImage as bad:  # is met again, with all others, where its pixels are wanted
            stamp = f"bad {bad}"
        digest.update(f"{index} {stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_shard(path: Path, shape: tuple[int, int]) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        features = load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or damaged: computed again
    return features if tuple(features.shape) == shape else None


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
