"""Ensembles of heads on one encoder, in the way of Ruan et al. (ICLR 2023, arXiv 2211.09981)

Each head has its own prototypes. For each image the heads that are sure of its target count most.
"""

import copy
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from msn.config.kinds import MSNConfig
from msn.methods.base import decay_groups
from msn.methods.msn.build import build_head, draw_prototypes_of
from msn.methods.msn.losses import LossSettings, MSNLosses, msn_losses
from msn.methods.msn.model import MSN
from msn.models.encoder import NORMED
from msn.models.vit import VisionTransformer, init_official
from msn.runtime import checkpoint


def ensemble_losses(
    heads: Sequence[tuple[Tensor, Tensor, Tensor]],
    settings: LossSettings,
    *,
    sharpening: float,
    log_prior: Tensor,
) -> MSNLosses:
    """Compute the loss of several heads.

    The naive loop it equals, with `loss` of `msn_losses` and H(t) the entropy of a target:

        for image in range(B):
            weight = softmax over the heads of -H(t[head, image]) / ensemble_temperature
            cross_entropy += sum over the heads of weight[head] * loss[head, image] / B
        total = cross_entropy + means over the heads of the regularizer and the entropy, weighted

    Args:
        heads: of each anchors (V*B, D), targets (B, D) and prototypes (K, D).
        settings: temperatures and weights.
        sharpening: T of the targets.
        log_prior: (K,).

    Returns:
        The sums and means; assignments are those of the first head.
    """
    found = [
        msn_losses(*head, settings, sharpening=sharpening, log_prior=log_prior) for head in heads
    ]
    log_t = torch.stack([each.log_targets for each in found])  # (heads, B, K)
    entropy = -(log_t.exp() * log_t).sum(dim=-1)
    weights = torch.softmax(-entropy / settings.ensemble_temperature, dim=0)
    by_image = torch.stack([each.by_image for each in found])
    cross_entropy = (weights * by_image).sum(dim=0).mean()
    regularizer, spread = (
        torch.stack([getattr(each, name) for each in found]).mean()
        for name in ("regularizer", "entropy")
    )
    total = cross_entropy + settings.memax_weight * regularizer + settings.ent_weight * spread
    return found[0]._replace(
        total=total, cross_entropy=cross_entropy, regularizer=regularizer, entropy=spread
    )


class Member(nn.Module):
    """A further head: that of the anchor, that of the target which follows it, and prototypes."""

    def __init__(self, head: nn.Module, prototypes: nn.Parameter) -> None:
        super().__init__()
        self.anchor = head
        self.target = copy.deepcopy(head).requires_grad_(False)
        self.prototypes = prototypes


def draw_members(config: MSNConfig) -> list[Member]:
    """Draw the heads beyond the first, as the encoder draws its own."""
    return [
        Member(build_head(config).apply(init_official), draw_prototypes_of(config))
        for _ in range(config.criterion.ensemble - 1)
    ]


class EnsembleMSN(MSN):
    """MSN with further heads. Checkpoints keep them apart: what is exported is of the first."""

    CHECKPOINT = MappingProxyType({**MSN.CHECKPOINT, "ensemble": "members"})

    def __init__(self, *parts: Any, members: Sequence[Member], **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.members: Any = nn.ModuleList(members)

    def embed(
        self, encoder: VisionTransformer, images: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Compute what all heads make of the class token, side by side: (B, heads * out_dim)."""
        side = "anchor" if encoder is self.anchor else "target"
        token = encoder.features(images, NORMED, keep)
        heads = [encoder.fc, *(getattr(member, side) for member in self.members)]
        return torch.cat([head(token) for head in heads], dim=-1)

    def losses_of(self, anchors: Tensor, targets: Tensor, step: int) -> MSNLosses:
        prototypes = [self.prototypes, *(member.prototypes for member in self.members)]
        dtype, count = self.prototypes.dtype, len(prototypes)
        with torch.autocast(anchors.device.type, enabled=False):
            split = (each.to(dtype).chunk(count, dim=-1) for each in (anchors, targets))
            return ensemble_losses(
                list(zip(*split, prototypes, strict=True)),
                self.loss_settings,
                sharpening=self.sharpening(step),
                log_prior=self.log_prior,
            )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        for member in self.members:
            anchor, target = (list(head.parameters()) for head in (member.anchor, member.target))
            torch._foreach_lerp_(target, anchor, 1.0 - self.momentum(step))

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        own = decay_groups(nn.ModuleList(member.anchor for member in self.members))
        own.append({"params": [member.prototypes for member in self.members]})
        for group, more in zip(groups, own, strict=False):  # no third one: prototypes are frozen
            group["params"] += more["params"]
        return groups

    def clipped(self) -> Iterator[nn.Parameter]:
        yield from super().clipped()
        for member in self.members:
            yield from member.anchor.parameters()

    def load_weights(self, found: checkpoint.Found) -> list[str]:
        """Load all heads; further ones that a file lacks stay as they were drawn."""
        path, state = found
        said = super().load_weights(found)
        if "ensemble" not in state:
            return [*said, "the file has no further heads: they begin as drawn"]
        checkpoint.load_weights(self.members, state["ensemble"], path=path, key="ensemble")
        return said
