"""`MSNForPreTraining`: MSN as one module in the style of Hugging Face, for any trainer."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from msn.config.sections.msn import MSNCriterion, MSNData, MSNMeta, MSNOptimization
from msn.config.sizes import ENCODERS, EncoderSize
from msn.data.inputs import NORMALIZE, require_normalized
from msn.data.normalization import Normalization, imagenet_normalization
from msn.interop.weights import Weights, weights_from
from msn.methods.msn.build import draw_prototypes
from msn.methods.msn.losses import LossSettings, log_prior
from msn.methods.msn.model import MSN, views_of
from msn.methods.schedules import linear
from msn.models.head import projection_head
from msn.models.masking import Masking
from msn.models.vit import build_encoder
from msn.runtime.errors import UserError

# The defaults of a config file are those of the module.
META, CRITERION, OPTIMIZATION = MSNMeta(), MSNCriterion(), MSNOptimization()
VIEWS = MSNData(source="digits")  # the one source that needs no place
SIZE = ENCODERS[str(META.model_name)]


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
        total_steps: optimizer steps of the training, over which the momentum grows.
        patch_size: side of a patch in pixels.
        embed_dim: width of the encoder.
        depth: number of its blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP over `embed_dim`.
        image_size: side in pixels of target and random views.
        in_chans: channels of an image.
        drop_path_rate: stochastic depth of the last block.
        hidden_dim: hidden width of the projection head.
        out_dim: width of its output and of a prototype.
        num_prototypes: number of prototypes.
        temperature: of the anchors' assignment.
        sharpening: T of the targets, p^(1/T).
        momentum: of the target at the first and after the last step.
        sinkhorn_iterations: 0 leaves the targets unbalanced.
        memax_weight: weight of the regularizer.
        patch_drop: share of patches that random views lose.
        seed: of the masks.
    """

    step: Tensor

    def __init__(
        self,
        *,
        total_steps: int,
        patch_size: int = META.patch_size,
        embed_dim: int = SIZE.embed_dim,
        depth: int = SIZE.depth,
        num_heads: int = SIZE.num_heads,
        mlp_ratio: float = SIZE.mlp_ratio,
        image_size: int = VIEWS.rand_size,
        in_chans: int = 3,
        drop_path_rate: float = META.drop_path_rate,
        hidden_dim: int = META.hidden_dim,
        out_dim: int = META.output_dim,
        num_prototypes: int = CRITERION.num_proto,
        temperature: float = CRITERION.temperature,
        sharpening: float = CRITERION.start_sharpen,
        momentum: tuple[float, float] = OPTIMIZATION.ema,
        sinkhorn_iterations: int = CRITERION.sinkhorn_iterations,
        memax_weight: float = CRITERION.memax_weight,
        patch_drop: float = VIEWS.patch_drop,
        seed: int = META.seed,
    ) -> None:
        super().__init__()
        size = EncoderSize(patch_size, embed_dim, depth, num_heads, mlp_ratio)
        self.num_heads = num_heads
        self.msn = MSN(
            build_encoder(
                size,
                image_size=image_size,
                in_chans=in_chans,
                drop_path_rate=drop_path_rate,
                head=projection_head(embed_dim, hidden_dim, out_dim, batch_norm=True),
            ),
            draw_prototypes(num_prototypes, out_dim),
            log_prior(num_prototypes),
            loss=LossSettings(temperature, sinkhorn_iterations, memax_weight),
            masking=Masking(patch_drop, seed=seed),
            sharpening=lambda step: sharpening,
            momentum=partial(linear, total=total_steps, start=momentum[0], final=momentum[1]),
        )
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
            num_heads=self.num_heads,
            prototypes=self.msn.prototypes.detach().clone(),
            normalization=normalization,
        )


def _read_step(model: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(model, MSNForPreTraining)
    model._step = int(model.step)
