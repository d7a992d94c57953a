"""Masked Siamese Networks: an anchor encoder, its moving average as the target, prototypes.

The method as the training loop sees it: `forward` maps views and a step to losses, `after_step`
is called once the optimiser has stepped, `metrics` and `state` serve the run log and checkpoints.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from msn.data.batch import Views
from msn.methods import health
from msn.methods.msn.losses import MSNLosses, msn_losses
from msn.models.encoder import VisionTransformer
from msn.models.masking import MaskScope, random_keep
from msn.runtime import collectives
from msn.runtime.keyed import Stream, seed64

Schedule = Callable[[float], float]


class MSNOutput(NamedTuple):
    """One forward pass: the losses, and the target features (B, out_dim) that they rest on."""

    losses: MSNLosses
    target_features: Tensor

    @property
    def total(self) -> Tensor:
        """The loss to minimise, shape ()."""
        return self.losses.total


class MSN(nn.Module):
    """MSN (paper section 3).

    Args:
        anchor: the encoder to train, with its projection head. The target starts as its copy.
        num_prototypes: K.
        out_dim: width of the head's output and of a prototype.
        temperature: tau of the anchors' assignment.
        sharpening: step -> T of the targets.
        momentum: step -> momentum of the target's moving average.
        log_prior: (K,) log of the distribution that the mean assignment is drawn to.
        sinkhorn_iterations: 0 leaves the targets unbalanced.
        memax_weight: weight of the regulariser (mean-entropy maximisation).
        ent_weight: weight of the anchors' entropy.
        label_smoothing: share of each assignment that is spread evenly.
        patch_drop: share of patches that random views lose.
        mask_scope: one mask for each process's batch (official), for the batch of all processes,
            or for each image.
        freeze_prototypes: leave the prototypes as they are drawn.
        accumulate: parts that a batch is encoded in, one after another.
        seed: seed of the masks.
    """

    def __init__(
        self,
        anchor: VisionTransformer,
        *,
        num_prototypes: int,
        out_dim: int,
        temperature: float,
        sharpening: Schedule,
        momentum: Schedule,
        log_prior: Tensor,
        sinkhorn_iterations: int = 3,
        memax_weight: float = 1.0,
        ent_weight: float = 0.0,
        label_smoothing: float = 0.0,
        patch_drop: float = 0.0,
        mask_scope: MaskScope = "batch",
        freeze_prototypes: bool = False,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.anchor = anchor
        self.target = copy.deepcopy(anchor).requires_grad_(False)
        bound = 1 / math.sqrt(out_dim)
        prototypes = torch.empty(num_prototypes, out_dim).uniform_(-bound, bound)
        self.prototypes = nn.Parameter(prototypes, requires_grad=not freeze_prototypes)
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.log_prior: Tensor
        self.sharpening = sharpening
        self.momentum = momentum
        self.loss_settings: dict[str, Any] = {
            "temperature": temperature,
            "sinkhorn_iterations": sinkhorn_iterations,
            "memax_weight": memax_weight,
            "ent_weight": ent_weight,
            "label_smoothing": label_smoothing,
        }
        self.patch_drop = patch_drop
        self.mask_scope: MaskScope = mask_scope
        self.accumulate = accumulate
        self.seed = seed

    def forward(self, views: Views, *, step: int) -> MSNOutput:
        """Losses of one batch of normalised views at a global step.

        The loss, Sinkhorn and the mean assignment are always those of the whole batch. With
        `accumulate` = k the batch is encoded in k parts whose activations are recomputed during
        the backward pass, so that only one part's activations are held at a time; BatchNorm then
        takes its statistics over a part.
        """
        parts = views.micro_batches(self.accumulate)
        masks = self.draw_keep(views, step)
        with record_function("anchor forward"):
            encoded = [self._encode_anchors(*both) for both in zip(parts, masks, strict=True)]
            anchors = torch.cat(encoded, dim=1).flatten(0, 1)  # view-major: (V * B, out_dim)
        with record_function("target forward"), torch.no_grad():
            targets = torch.cat([self.target(part.target) for part in parts])
        with record_function("loss"):
            return MSNOutput(self.losses_of(anchors, targets, step), targets)

    def losses_of(self, anchors: Tensor, targets: Tensor, step: int) -> MSNLosses:
        """Losses of anchor (V*B, out_dim) and target (B, out_dim) features, never in bf16."""
        dtype = self.prototypes.dtype
        with torch.autocast(anchors.device.type, enabled=False):
            return msn_losses(
                anchors.to(dtype),
                targets.to(dtype),
                self.prototypes,
                sharpening=self.sharpening(step),
                log_prior=self.log_prior,
                **self.loss_settings,
            )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the target's parameters towards the anchor's: m * target + (1 - m) * anchor.

        Buffers are left alone: the target's BatchNorm keeps statistics of its own batches, as it
        stays in training mode.
        """
        anchor: list[Tensor] = list(self.anchor.parameters())
        target: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(target, anchor, 1.0 - self.momentum(step))

    @torch.no_grad()
    def metrics(self, output: MSNOutput) -> dict[str, Tensor]:
        """Scalars of one step for the run log, as tensors on the device; of all processes."""
        losses = output.losses
        parts = torch.stack(
            [losses.total, losses.cross_entropy, losses.regulariser, losses.entropy]
        )
        total, cross_entropy, regulariser, entropy = collectives.mean(parts)
        probabilities = collectives.gather(losses.log_targets.exp())
        features = collectives.gather(output.target_features.float())
        return {
            "loss": total,
            "msn": cross_entropy,
            "me_max": regulariser,
            "ent": entropy,
            "np": health.prototypes_in_use(probabilities),
            "max_t": probabilities.amax(dim=1).mean(),
            "proto_entropy": health.assignment_entropy(losses.log_mean_assignment.exp()),
            "feature_std": health.feature_std(features),
            "rankme": health.rankme(features),
        }

    def verdict(self, metrics: Mapping[str, float], *, images: int) -> str | None:
        """A warning if the metrics of a batch say that the representation has collapsed."""
        return health.verdict(
            feature_std=metrics["feature_std"],
            rankme=metrics["rankme"],
            proto_entropy=metrics["proto_entropy"],
            images=images,
        )

    def state(self) -> dict[str, Any]:
        """Weights under the official checkpoint keys."""
        return {
            "encoder": self.anchor.state_dict(),
            "target_encoder": self.target.state_dict(),
            "prototypes": self.prototypes.detach(),
        }

    def draw_keep(self, views: Views, step: int) -> list[Tensor | None]:
        """Kept patches of the random views, for each part of the batch."""
        height, width = views.random.shape[-2:]
        rows, columns = self.anchor.patch_embed.grid(height, width)
        count, images = views.random.shape[:2]
        rank = collectives.rank()
        keep = random_keep(
            rows * columns,
            self.patch_drop,
            seed=seed64(self.seed, Stream.MASK, step, rank if self.mask_scope == "batch" else 0),
            images=images * count,
            first=rank * images * count,
            scope=self.mask_scope,
        )
        if keep is None:
            return [None] * self.accumulate
        keep = keep.to(views.random.device, non_blocking=True)
        if self.mask_scope != "image":
            return [keep] * self.accumulate
        # Drawn image by image, used view by view.
        parts = keep.view(images, count, -1).chunk(self.accumulate)
        return [part.transpose(0, 1).flatten(0, 1) for part in parts]

    def _encode_anchors(self, views: Views, keep: Tensor | None) -> Tensor:
        """Anchor features (V, b, out_dim) of one part of the batch: random views, then focal."""

        def encode(images: Tensor, keep: Tensor | None = None) -> Tensor:
            flat = images.flatten(0, 1)
            if self.accumulate == 1:
                return self.anchor(flat, keep).unflatten(0, images.shape[:2])
            features = checkpoint(
                self.anchor,
                flat,
                keep,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_kept(self.anchor)),
            )
            return features.unflatten(0, images.shape[:2])

        kinds = [encode(views.random, keep)]
        if len(views.focal):
            kinds.append(encode(views.focal))
        return torch.cat(kinds)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave BatchNorm's running statistics alone: a recomputation must not count twice."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
