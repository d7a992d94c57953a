"""`MSNForPreTraining`: MSN as one module in the style of Hugging Face, for any trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from msn.config.load import stated_config
from msn.data.inputs import NORMALIZE, require_normalized
from msn.data.normalization import Normalization, imagenet_normalization
from msn.interop.weights import Weights, weights_from
from msn.methods.msn.model import MSN, views_of
from msn.runtime.errors import UserError

NOT_ITS_OWN = {"data": {"source": "digits"}, "logging": {"folder": "unused"}}
"""What a config file needs and a module does not: images, and a place to write to."""


class PreTrainingOutput(NamedTuple):
    """One forward pass; trainers minimize the first entry.

    Attributes:
        loss: scalar.
        cross_entropy, regularizer: its two parts, without gradient.
        target_features: (B, out_dim), of the target's head.
    """

    loss: Tensor
    cross_entropy: Tensor
    regularizer: Tensor
    target_features: Tensor


class MSNForPreTraining(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="msn",
    tags=["msn", "self-supervised-learning", "vision-transformer"],
):
    """Anchor, target and prototypes of MSN, with `save_pretrained`, `from_pretrained`, and
    `push_to_hub`.

    The target follows the anchor once after every step of the optimizer: call `after_step()` then,
    or give a trainer of transformers a callback that does (see examples/huggingface_trainer.py).
    While training it computes in training mode, as in the official code.
    To evaluate, take `encoder_weights().build()`.

    Args:
        settings: the sections criterion, data, meta and optimization of a config file, each with
            the keys that differ from the defaults; data.channels null means 3.
        total_steps: optimizer steps of the training, in place of optimization.epochs; the momentum
            grows over optimization.schedule_stretch times as many.

    Raises:
        UserError: a key that there is not, or a value that it cannot have.
    """

    step: Tensor

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], total_steps: int) -> None:
        super().__init__()
        own = {name: {**settings.get(name, {}), **keys} for name, keys in NOT_ITS_OWN.items()}
        steps = {"optimization": {**settings.get("optimization", {}), "epochs": 1, "warmup": 0}}
        config = stated_config({**settings, **own, **steps}, "settings")
        self.msn = MSN.build(config, config.data.channels or 3, total_steps)
        # In the state dict as a tensor; read as a number, which asks no device to wait.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._step = 0
        self.register_load_state_dict_post_hook(_read_step)  # type: ignore[no-untyped-call]

    def forward(
        self, target: Tensor, random: Tensor, focal: Tensor | None = None
    ) -> PreTrainingOutput:
        """Compute the losses of one batch of normalized views, of B images each.

        Args:
            target: (B, C, H, W).
            random: (B, R, C, H, W), anchor views that lose patches.
            focal: (B, F, C, h, w), small anchor views.

        Raises:
            UserError: a tensor is not of normalized views, or not of as many images as the others.
        """
        if focal is None:
            focal = random[:, :0]
        self._check({"target": target, "random": random, "focal": focal})
        views = views_of(target, random.transpose(0, 1), focal.transpose(0, 1))
        output = self.msn(views, step=self._step)
        losses, target_features = output.details
        return PreTrainingOutput(
            output.loss,
            losses.cross_entropy.detach(),
            losses.regularizer.detach(),
            target_features,
        )

    def _check(self, views: dict[str, Tensor]) -> None:
        """Refuse views that `forward` does not take; values are checked before step 1 only."""
        images, channels = len(views["target"]), self.msn.anchor.in_chans
        for name, given in views.items():
            axes = 4 if name == "target" else 5
            shape = given.shape
            if given.ndim != axes or shape[-3] != channels or not 0 < len(given) == images:
                many = "" if name == "target" else "views, "
                raise UserError(
                    f"{name} views of shape {tuple(shape)}: must be (images, {many}{channels},"
                    " height, width), with as many images as the target views"
                )
            if not given.is_floating_point():
                raise UserError(f"{name} views of {given.dtype}: must be floats; {NORMALIZE}")
            if self._step == 0:
                require_normalized(given, imagenet_normalization(channels))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target toward the anchor; call this once after each step of the optimizer."""
        self.msn.after_step(self._step)
        self._step += 1
        self.step += 1

    def encoder_weights(self, normalization: Normalization | None = None) -> Weights:
        """Give the target encoder with head and prototypes, to be built, evaluated or exported.

        Args:
            normalization: of the images that it was trained on; None says ImageNet's.
        """
        tensors = {name: t.detach().clone() for name, t in self.msn.target.state_dict().items()}
        return weights_from(
            tensors,
            path=Path("MSNForPreTraining"),
            num_heads=self.msn.target.num_heads,
            prototypes=self.msn.prototypes.detach().clone(),
            normalization=normalization,
        )


def _read_step(model: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(model, MSNForPreTraining)
    model._step = int(model.step)
