"""Frozen encoders: images in, features out, on one device or several.

encoder = msn.load_encoder("runs/mine/msn-latest.pth.tar")
features = encoder.features(images)  # (N, D)
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msn.config.sections.data import Interpolation
from msn.data.batch import normalize
from msn.data.inputs import images_or_views, pixels
from msn.data.normalization import Normalization
from msn.data.views import eval_view
from msn.interop import reading
from msn.interop.architecture import digest
from msn.interop.official import Which
from msn.interop.weights import Weights
from msn.models.encoder import MSN_TAPS, Encoder, Taps
from msn.models.masking import kept_patches, random_keep
from msn.runtime.errors import UserError
from msn.runtime.keyed import Stream, seed64


class FrozenEncoder:
    """An encoder in eval mode, with all that turns an image into its features.

    Args:
        model: the encoder; a copy goes to each further device.
        image_size: side of the square views, px.
        mean, std: one number for each channel.
        digest: of the weights; tells encoders apart.
        interpolation: filter that images are resized with.
        devices: each takes an equal part of every batch.
        bf16: compute under bfloat16 autocast.
    """

    def __init__(
        self,
        model: Encoder,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        digest: str,
        interpolation: Interpolation = "bilinear",
        devices: Sequence[torch.device | str] = ("cpu",),
        bf16: bool = False,
    ) -> None:
        if not len(mean) == len(std) == model.in_chans:
            raise UserError(
                f"mean and std have {len(mean)} and {len(std)} numbers, the encoder takes images of"
                f" {model.in_chans} channels; give one for each"
            )
        model = model.eval().requires_grad_(False)
        self.devices = [torch.device(device) for device in devices]
        first, *others = self.devices
        self._models = [model.to(first), *(copy.deepcopy(model).to(device) for device in others)]
        self.image_size, self.interpolation = image_size, interpolation
        self.channels = model.in_chans
        self.mean, self.std = tuple(mean), tuple(std)
        places = {each.device for each in self._models}
        self._statistics = {
            place: torch.tensor([self.mean, self.std], device=place) for place in places
        }
        self.digest = digest
        self.bf16 = bf16
        self._require_patches((image_size, image_size))

    @property
    def model(self) -> Encoder:
        """The encoder itself, on the first device."""
        return self._models[0]

    def width(self, taps: Taps = MSN_TAPS) -> int:
        """Count the numbers that make up the features of one image."""
        return self.model.width(taps)

    def features(self, images: Any, taps: Taps = MSN_TAPS, batch_size: int = 256) -> Tensor:
        """Compute features of images in memory: float32 (N, D) on the CPU, a row for each image.

        Args:
            images: an image of Pillow, a uint8 array (H, W, C), or a list of those, of any sizes:
                the evaluation view of each is taken (`msn.data.views.eval_view`). A tensor is of
                views that are made already and used whole: uint8 (N, H, W, C) or (N, C, H, W); or
                float (N, C, H, W), which is taken as normalized with `mean` and `std`.
            taps: which features.
            batch_size: images at a time.

        Raises:
            UserError: the images are none of that, or float pixels that are not normalized.
        """
        self.check(taps)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size {batch_size!r}: must be a whole number from 1")
        found = images_or_views(images, self.channels, Normalization(self.mean, self.std))
        parts = []
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            views = batch if isinstance(batch, Tensor) else self.views(batch)
            parts.append(self.encode(views, range(start, start + len(views)), taps))
        return torch.cat(parts) if parts else torch.empty(0, self.width(taps))

    def views(self, images: Sequence[np.ndarray]) -> Tensor:
        """Make evaluation views, uint8 (N, S, S, C), of uint8 images (H, W, C)."""
        found = [pixels(image, self.channels) for image in images]
        views = [eval_view(image, self.image_size, self.interpolation) for image in found]
        return torch.from_numpy(np.stack(views))

    def encode(self, views: Tensor, indices: Sequence[int], taps: Taps = MSN_TAPS) -> Tensor:
        """Encode one batch of views into features: float32 (B, D) on the CPU.

        Args:
            views: uint8 (B, H, W, C) as made by `views`, or normalized float (B, C, H, W).
            indices: of the images in their source: what patches an image loses depends on nothing
                else, neither on the batch nor on the devices.
            taps: which features.
        """
        self._require_patches(_sides(views))
        keep = self._keep(views, indices, taps.mask)
        count = min(len(self._models), len(views))
        if count == 1:
            return self._encode(self.model, views, keep, taps)
        keeps = [None] * count if keep is None else keep.tensor_split(count)
        with ThreadPoolExecutor(count) as pool:
            parts = pool.map(
                self._encode, self._models[:count], views.tensor_split(count), keeps, [taps] * count
            )
            return torch.cat(list(parts))

    def check(self, taps: Taps) -> None:
        """Refuse taps that this encoder does not have.

        Raises:
            UserError: says which, and what there is.
        """
        self.model.check(taps)
        patches = self.model.grid(self.image_size, self.image_size)
        number = patches[0] * patches[1]
        if not 0 <= taps.mask < 1 or kept_patches(number, taps.mask) < 1:
            raise UserError(
                f"--mask {taps.mask:g}: must be a share from 0 to below 1 that leaves at least one"
                f" of the {number} patches"
            )

    @torch.no_grad()
    def attention(
        self, views: Tensor, indices: Sequence[int], *, block: int = -1, mask: float = 0.0
    ) -> Tensor:
        """Compute how the class token attends to all tokens: float32 (B, heads, 1 + N) on the CPU.

        Itself first, then the patches row by row, NaN for those that an image loses; without them
        it sums to 1.

        Args:
            views: one batch as for `encode`, of any height and width.
            indices: of the images in their source, which draw what patches they lose.
            block: number of the block, from 0, or from the last back, -1.
            mask: share of patches to drop.

        Raises:
            UserError: the encoder has no such attention.
        """
        self._require_patches(_sides(views))
        keep, model = self._keep(views, indices, mask), self.model
        images = self._normalized(model, views)
        with self._autocast(model):
            found = model.attention_maps(
                *(images, block, None if keep is None else keep.to(model.device)),
                class_token_only=True,
            )[:, :, 0]
        weights = found.float().cpu()
        if keep is None:
            return weights
        rows, columns = model.grid(*_sides(views))
        whole: Tensor = weights.new_full((*weights.shape[:2], 1 + rows * columns), torch.nan)
        places = torch.cat([torch.zeros(len(keep), 1, dtype=keep.dtype), keep + 1], dim=1)
        whole.scatter_(2, places[:, None].expand_as(weights), weights)
        return whole

    @torch.no_grad()
    def patches(self, views: Tensor) -> Tensor:
        """Compute the final tokens of a batch of any height and width: (B, rows, columns, D)."""
        self._require_patches(_sides(views))
        with self._autocast(self.model):
            tokens = self.model.patch_tokens(self._normalized(self.model, views)).float().cpu()
        return tokens.reshape(len(tokens), *self.model.grid(*_sides(views)), -1)

    @torch.no_grad()
    def _encode(self, model: Encoder, views: Tensor, keep: Tensor | None, taps: Taps) -> Tensor:
        keep = None if keep is None else keep.to(model.device)
        with self._autocast(model):
            return model.features(self._normalized(model, views), taps, keep).float().cpu()

    def _normalized(self, model: Encoder, views: Tensor) -> Tensor:
        device = model.device
        if views.is_floating_point():
            return views.to(device)
        return normalize(views, *self._statistics[device])

    def _autocast(self, model: Encoder) -> torch.autocast:
        return torch.autocast(model.device.type, torch.bfloat16, enabled=self.bf16)

    def _require_patches(self, sides: tuple[int, int]) -> None:
        if 0 in self.model.grid(*sides):
            height, width = sides
            raise UserError(f"images of {height} x {width} px: smaller than the encoder's patches")

    def _keep(self, views: Tensor, indices: Sequence[int], mask: float) -> Tensor | None:
        if not mask:
            return None
        rows, columns = self.model.grid(*_sides(views))
        draws = [
            random_keep(rows * columns, mask, seed=seed64(0, Stream.MASK, index), images=1)
            for index in indices
        ]
        return torch.stack([draw for draw in draws if draw is not None])


def _sides(views: Tensor) -> tuple[int, int]:
    """Find the height and width of views, whether uint8 (B, H, W, C) or float (B, C, H, W)."""
    height, width = views.shape[-2:] if views.is_floating_point() else views.shape[1:3]
    return height, width


def load_encoder(
    path: str | Path,
    *,
    encoder: Which = "target",
    model_name: str | None = None,
    num_heads: int | None = None,
    devices: Sequence[torch.device | str] = ("cpu",),
    bf16: bool = False,
    image_size: int | None = None,
) -> FrozenEncoder:
    """Load a frozen encoder from whatever `msn import` reads: a checkpoint, a folder, a release.

    The architecture follows from the file. Image size, filter and normalization are those of the
    training where the file tells them, else bilinear and those of ImageNet.

    Args:
        path: of the file or folder, see `msn.interop.reading.read`.
        encoder: "target" (what is evaluated), or "anchor" where the file has it.
        model_name: the model that the weights have to be of; None takes what they are.
        num_heads: attention heads, where the file does not tell.
        devices: to compute on; batches are split over them.
        bf16: compute under bfloat16 autocast, else in float32.
        image_size: side of the views, px; None takes that of the training.

    Raises:
        UserError: the file cannot be read, or holds another model.
    """
    found = reading.read(path, which=encoder, num_heads=num_heads, model_name=model_name)
    return frozen(found, devices=devices, bf16=bf16, image_size=image_size)


def frozen(
    found: Weights,
    *,
    devices: Sequence[torch.device | str] = ("cpu",),
    bf16: bool = False,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model: Encoder | None = None,
) -> FrozenEncoder:
    """Build a frozen encoder from weights that were read, or from `model` if it is given.

    Size and normalization are those that are given, else the training's, else ImageNet's.
    """
    model = model or found.trainable()
    return FrozenEncoder(
        model,
        image_size=image_size or found.image_size,
        mean=mean or found.normalization.mean,
        std=std or found.normalization.std,
        digest=digest(model.state_dict()),
        interpolation=found.interpolation,
        devices=devices,
        bf16=bf16,
    )
