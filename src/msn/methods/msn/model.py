"""The model: an anchor encoder, the target that follows it, prototypes."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint as recomputed

from msn.config.kinds import Config, MSNConfig
from msn.config.sections.msn import MSNData
from msn.data.batch import Views
from msn.data.draws import ViewKind
from msn.methods import health
from msn.methods.base import Cost, Fact, Method, Output
from msn.methods.msn.build import (
    build_anchor,
    draw_prototypes_of,
    loss_settings,
    momentum_schedule,
    parameter_groups,
    sharpening_schedule,
)
from msn.methods.msn.losses import LossSettings, MSNLosses, msn_losses
from msn.methods.msn.plan import cost, plan_lines
from msn.methods.msn.prior import read_log_prior
from msn.methods.schedules import Schedule
from msn.models.batch_norm import statistics_kept
from msn.models.masking import Masking, random_keep
from msn.models.vit import VisionTransformer
from msn.runtime import checkpoint, collectives
from msn.runtime.keyed import Stream, seed64

TARGET, RANDOM, FOCAL = "target", "random", "focal"
"""The kinds of views: whole for the target, masked for the anchor, small for the anchor."""


class MSNDetails(NamedTuple):
    """What a forward pass computed: the losses, and the target features (B, out_dim)."""

    losses: MSNLosses
    target_features: Tensor


def view_kinds(data: MSNData) -> tuple[ViewKind, ...]:
    """List the kinds of views of MSN; target and random views are cropped alike (A.1)."""
    return (
        ViewKind(TARGET, 1, data.rand_size, data.rand_crop_scale),
        ViewKind(RANDOM, data.rand_views, data.rand_size, data.rand_crop_scale),
        ViewKind(FOCAL, data.focal_views, data.focal_size, data.focal_crop_scale),
    )


def views_of(target: Tensor, random: Tensor, focal: Tensor) -> Views:
    """Collect target (B, ...), random (R, B, ...) and focal (F, B, ...) views by kind."""
    return Views({TARGET: target[None], RANDOM: random, FOCAL: focal})


class MSN(Method):
    """MSN (paper section 3).

    Args:
        anchor: the encoder to train, with its projection head. The target starts as its copy.
        prototypes: (K, out_dim), of the width of the head's output; trained if they require a
            gradient.
        log_prior: (K,) log of the distribution that the mean assignment is matched to.
        loss: temperature and weights of the loss.
        masking: how random views lose patches.
        sharpening: step -> T of the targets.
        momentum: step -> momentum of the target's moving average.
        accumulate: parts that a batch is encoded in, one after another.
    """

    CHECKPOINT = MappingProxyType(
        {"encoder": "anchor", "target_encoder": "target", "prototypes": "prototypes"}
    )
    METRICS = ("msn", "me_max", "ent", "np", "max_t", "proto_entropy", "feature_std", "rankme")
    # The columns of the official code come first.
    COLUMNS = (
        *("epoch", "itr", "msn", "me_max", "ent", "time (ms)", "step"),
        *("loss", "grad_norm", "lr", "wd", "momentum", "np", "max_t", "images_per_s", "data_wait"),
        *("proto_entropy", "feature_std", "rankme", "bad_images"),
    )
    SHOWN = ("msn", "me_max", "ent")
    PHASES = ("anchor forward", "target forward", "loss")
    REMEDY = (
        "a learning rate too high for this model or a patch_drop too low for a large one: lower"
        " optimization.lr, lengthen optimization.warmup, raise data.patch_drop, or set"
        " meta.precision: fp32"
    )

    def __init__(
        self,
        anchor: VisionTransformer,
        prototypes: nn.Parameter,
        log_prior: Tensor,
        *,
        loss: LossSettings,
        masking: Masking,
        sharpening: Schedule,
        momentum: Schedule,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.anchor = anchor
        self.target = copy.deepcopy(anchor).requires_grad_(False)
        self.prototypes = prototypes
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.log_prior: Tensor
        self.loss_settings, self.masking = loss, masking
        self.sharpening, self.momentum = sharpening, momentum
        self.accumulate = accumulate

    @classmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        assert isinstance(config, MSNConfig)
        return view_kinds(config.data)

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "MSN":
        assert isinstance(config, MSNConfig)
        criterion, data, meta = config.criterion, config.data, config.meta
        anchor, prototypes = build_anchor(config, channels), draw_prototypes_of(config)
        kind: Callable[..., MSN] = cls
        if criterion.ensemble > 1:
            from msn.methods.msn.ensemble import EnsembleMSN, draw_members

            kind = partial(EnsembleMSN, members=draw_members(config))
        return kind(
            anchor,
            prototypes,
            read_log_prior(criterion.prior, criterion.num_proto),
            loss=loss_settings(config),
            masking=Masking(data.patch_drop, data.mask_scope, meta.seed),
            sharpening=sharpening_schedule(config, steps_per_epoch),
            momentum=momentum_schedule(config, steps_per_epoch),
            accumulate=config.optimization.accumulate,
        )

    def forward(self, views: Views, *, step: int) -> Output:
        """Compute the losses of one batch of normalized views at a global step.

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
            targets = torch.cat([self.embed(self.target, part[TARGET][0]) for part in parts])
        with record_function("loss"):
            losses = self.losses_of(anchors, targets, step)
        return Output(losses.total, MSNDetails(losses, targets))

    def embed(
        self, encoder: VisionTransformer, images: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Encode images (B, C, H, W), of which only the patches `keep` may count: (B, out_dim)."""
        features: Tensor = encoder(images, keep)
        return features

    def losses_of(self, anchors: Tensor, targets: Tensor, step: int) -> MSNLosses:
        """Compute the losses of anchor (V*B, out_dim) and target (B, out_dim) features.

        They are never computed in bf16.
        """
        dtype = self.prototypes.dtype
        with torch.autocast(anchors.device.type, enabled=False):
            return msn_losses(
                anchors.to(dtype),
                targets.to(dtype),
                self.prototypes,
                self.loss_settings,
                sharpening=self.sharpening(step),
                log_prior=self.log_prior,
            )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the target's parameters toward the anchor's: m * target + (1 - m) * anchor.

        Buffers are left alone: the target's BatchNorm keeps statistics of its own batches, as it
        stays in training mode.
        """
        anchor: list[Tensor] = list(self.anchor.parameters())
        target: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(target, anchor, 1.0 - self.momentum(step))

    @torch.no_grad()
    def metrics(self, output: Output) -> dict[str, Tensor]:
        details: MSNDetails = output.details
        losses = details.losses
        parts = torch.stack(
            [losses.total, losses.cross_entropy, losses.regularizer, losses.entropy]
        )
        total, cross_entropy, regularizer, entropy = collectives.mean(parts)
        probabilities = collectives.gather(losses.log_targets.exp())
        features = collectives.gather(details.target_features.float())
        return {
            "loss": total,
            "msn": cross_entropy,
            "me_max": regularizer,
            "ent": entropy,
            "np": health.prototypes_in_use(probabilities),
            "max_t": probabilities.amax(dim=1).mean(),
            "proto_entropy": health.assignment_entropy(losses.log_mean_assignment.exp()),
            "feature_std": health.feature_std(features),
            "rankme": health.rankme(features),
        }

    def warning(self, metrics: Mapping[str, float], images: int) -> str | None:
        return health.verdict(
            feature_std=metrics["feature_std"],
            rankme=metrics["rankme"],
            proto_entropy=metrics["proto_entropy"],
            images=images,
        )

    def hyperparameters(self, step: int) -> dict[str, float]:
        return {"momentum": self.momentum(step)}

    @property
    def encoder(self) -> VisionTransformer:
        return self.target

    def networks(self) -> list[VisionTransformer]:
        return [self.anchor, self.target]

    def trained_networks(self) -> list[VisionTransformer]:
        return [self.anchor]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.anchor, self.prototypes)

    def clipped(self) -> Iterator[nn.Parameter]:
        """Give the anchor's parameters; as in the official code, prototypes are not clipped."""
        return self.anchor.parameters()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "temperature": self.loss_settings.temperature}

    def load_weights(self, found: checkpoint.Found) -> list[str]:
        """Load anchor, target and prototypes; a file without an anchor gives it the target's.

        Weights from elsewhere have no projection head: the model keeps the one that was drawn.
        """
        path, state = found
        key = "encoder" if "encoder" in state else "target_encoder"
        checkpoint.require_fit(state.get("prototypes"), self.prototypes, path, "prototypes")
        for module, name in ((self.anchor, key), (self.target, "target_encoder")):
            checkpoint.load_weights(module, state[name], path=path, key=name, optional="fc.")
        checkpoint.load_tensor(state.get("prototypes"), self.prototypes)
        return []

    @classmethod
    def plan(cls, config: Config, channels: int, steps_per_epoch: int) -> list[Fact]:
        assert isinstance(config, MSNConfig)
        return plan_lines(config, channels, steps_per_epoch)

    @classmethod
    def notes(cls, config: Config, images: int) -> list[str]:
        assert isinstance(config, MSNConfig)
        count = config.criterion.num_proto
        if count <= images:
            return []
        return [
            f"criterion.num_proto {count} is more than the {images} images of an epoch: most"
            " prototypes will not be used; lower it"
        ]

    @classmethod
    def cost(cls, config: Config, channels: int, *, bf16: bool) -> Cost:
        assert isinstance(config, MSNConfig)
        return cost(config, channels, bf16=bf16)

    def draw_keep(self, views: Views, step: int) -> list[Tensor | None]:
        """Draw the patches that the random views keep, for each part of the batch."""
        random, masking = views[RANDOM], self.masking
        height, width = random.shape[-2:]
        rows, columns = self.anchor.patch_embed.grid(height, width)
        count, images = random.shape[:2]
        rank = collectives.rank()
        own = rank if masking.scope == "batch" else 0
        keep = random_keep(
            rows * columns,
            masking.drop,
            seed=seed64(masking.seed, Stream.MASK, step, own),
            images=images * count,
            first=rank * images * count,
            scope=masking.scope,
        )
        if keep is None:
            return [None] * self.accumulate
        keep = keep.to(random.device, non_blocking=True)
        if masking.scope != "image":
            return [keep] * self.accumulate
        # Drawn image by image, used view by view.
        parts = keep.view(images, count, -1).chunk(self.accumulate)
        return [part.transpose(0, 1).flatten(0, 1) for part in parts]

    def _encode_anchors(self, views: Views, keep: Tensor | None) -> Tensor:
        """Encode random, then focal views of one part of the batch: (V, b, out_dim)."""

        def encode(images: Tensor, keep: Tensor | None = None) -> Tensor:
            flat = images.flatten(0, 1)
            if self.accumulate == 1:
                once: Tensor = self.embed(self.anchor, flat, keep).unflatten(0, images.shape[:2])
                return once
            features = recomputed(
                self.embed,
                self.anchor,
                flat,
                keep,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), statistics_kept(self)),
            )
            again: Tensor = features.unflatten(0, images.shape[:2])
            return again

        kinds = [encode(views[RANDOM], keep)]
        if len(views[FOCAL]):
            kinds.append(encode(views[FOCAL]))
        return torch.cat(kinds)
