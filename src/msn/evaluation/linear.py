"""Linear evaluation: train linear classifiers on frozen features, all labels, random crops.

The protocol of MSN (facts of its official code): class tokens before the final norm, LayerNorm,
unit length, linear; SGD with Nesterov momentum, a rate that falls as a cosine to 0, random resized
crops and flips. Several rates and numbers of blocks are tried at once: the encoder runs once for
all.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn.config.kinds import LinearConfig
from msn.data.labeled import CenterCrop, RandomCrop
from msn.evaluation.job import Job, build_job, read_weights
from msn.methods.optim import MomentumSGD
from msn.methods.schedules import cosine
from msn.models.encoder import Encoder, Taps
from msn.models.linear import HeadSettings, LinearHeads
from msn.runtime import checkpoint, collectives, resumable
from msn.runtime.checkpoint import CLASSIFIER, Found, State
from msn.runtime.devices import use_bf16
from msn.runtime.errors import UserError
from msn.runtime.integrity import all_finite
from msn.runtime.keyed import Stream, seed64
from msn.runtime.wording import counted


class LinearLearner:
    """The classifiers, each with its learning rate, on top of one frozen encoder.

    Args:
        encoder: on the device that all computes on.
        settings: of each classifier.
        classes: number of classes.
        normalize: whether features are scaled to unit length.
        weight_decay: of the linear layers' weights.
        total_steps: over which the learning rates fall to 0.
        bf16: whether the encoder computes under bfloat16 autocast.
        seed: of the initial weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: list[HeadSettings],
        *,
        classes: int,
        normalize: bool,
        weight_decay: float,
        total_steps: int,
        bf16: bool,
        seed: int,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.device = encoder.device
        self.settings, self.total_steps, self.bf16 = settings, total_steps, bf16
        self.blocks = max(each.num_blocks for each in settings)
        self.heads = LinearHeads(
            settings,
            dim=encoder.embed_dim,
            classes=classes,
            normalize=normalize,
            seed=seed64(seed, Stream.INIT),
        ).to(self.device)
        self.replica = collectives.replicated(self.heads)
        self.optimizer = MomentumSGD(self._groups(weight_decay))

    @property
    def names(self) -> list[str]:
        return [str(each) for each in self.settings]

    def learning_rate(self, step: int) -> float:
        return cosine(step, total=self.total_steps, start=self.settings[0].lr, final=0.0)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(step, total=self.total_steps, start=group["peak"], final=0.0)
        logits = self.replica(self.features(images))
        count = len(self.settings)
        rows = F.cross_entropy(logits.flatten(0, 1), labels.repeat(count), reduction="none")
        losses: Tensor = rows.unflatten(0, (count, -1)).mean(dim=1)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # the classifiers share no weight: each gets its own gradient
        self.optimizer.step()
        return losses.detach()

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.features(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Compute class tokens of as many last blocks as are needed: float32 (B, blocks * D)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.encoder.features(images, Taps(self.blocks)).float()

    def state(self) -> State:
        return {CLASSIFIER: self.heads.state_dict(), "opt": self.optimizer.state_dict()}

    def load_state(self, found: Found) -> None:
        # One of several that has diverged leaves the others alone.
        alone = len(self.settings) == 1
        weights = found.state[CLASSIFIER]
        checkpoint.load_weights(self.heads, weights, path=found.path, key=CLASSIFIER, finite=alone)
        if not any(all(map(all_finite, head.state_dict().values())) for head in self.heads.heads):
            raise checkpoint.unusable(found.path, CLASSIFIER, "not one of them is finite")
        moments = resumable.moments(found, self.optimizer, MomentumSGD.MOMENTS, finite=alone)
        self.optimizer.load_state_dict(moments)

    def _groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Make two parameter groups for each classifier: decayed weights, and all others."""
        groups: list[dict[str, object]] = []
        for head, settings in zip(self.heads.heads, self.settings, strict=True):
            weight: nn.Parameter = head.linear.weight
            others = [parameter for parameter in head.parameters() if parameter is not weight]
            groups += [
                {"params": [weight], "peak": settings.lr, "weight_decay": weight_decay},
                {"params": others, "peak": settings.lr, "weight_decay": 0.0},
            ]
        return groups


def prepare(config: LinearConfig, device: torch.device) -> tuple[Job, LinearLearner]:
    """Build the job and the learner of a linear evaluation.

    Raises:
        UserError: something that was asked for cannot be done.
    """
    data, optimization, seed = config.data, config.optimization, config.meta.seed
    weights = read_weights(config)
    most = weights.architecture.size.tapped
    if max(optimization.num_blocks) > most:
        raise UserError(
            f"optimization.num_blocks {max(optimization.num_blocks)} is more than the"
            f" {counted(most, 'block')} of the encoder that features are read from; lower it"
        )
    job = build_job(
        config,
        weights,
        train_view=RandomCrop(
            data.image_size, data.crop_scale, data.flip, seed, data.interpolation
        ),
        val_view=CenterCrop(data.image_size, data.interpolation),
        batch_size=optimization.batch_size,
        epochs=optimization.epochs,
        device=device,
    )
    return job, LinearLearner(
        weights.trainable().to(device),
        [HeadSettings(*pair) for pair in product(optimization.lr, optimization.num_blocks)],
        classes=job.classes,
        normalize=optimization.normalize,
        weight_decay=optimization.weight_decay,
        total_steps=job.total_steps,
        bf16=use_bf16(config.meta.precision, device),
        seed=seed,
    )
