"""Linear evaluation: train linear classifiers on frozen features, all labels, random crops.

The protocol of MSN (facts of its official code): class tokens before the final norm, LayerNorm,
unit length, linear; SGD with Nesterov momentum, a rate that falls as a cosine to 0, random resized
crops and flips. That of MAE (arXiv 2111.06377, appendix A.1): class tokens after the final norm,
BatchNorm without weights, linear; LARS; crops as TensorFlow draws them. Several rates and numbers
of blocks are tried at once: the encoder runs once for all.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from msn.config.kinds import LinearConfig
from msn.data.labeled import CenterCrop, RandomCrop
from msn.evaluation.job import Job, build_job, read_weights
from msn.methods.optim import LARS, MomentumSGD
from msn.methods.schedules import warmup_cosine
from msn.models.encoder import Encoder, Taps
from msn.models.linear import HeadSettings, LinearHeads
from msn.models.vit import VisionTransformer
from msn.runtime import checkpoint, collectives, resumable
from msn.runtime.checkpoint import CLASSIFIER, Found, State
from msn.runtime.devices import require_compiler, use_bf16
from msn.runtime.errors import UserError
from msn.runtime.integrity import all_finite
from msn.runtime.keyed import Stream, seed64
from msn.runtime.wording import counted


@dataclass(frozen=True)
class Training:
    """What all classifiers have in common.

    Attributes:
        total_steps: length of the run, at whose end the learning rates are 0.
        warmup_steps: of these, those in which the rates rise from 0.
        protocol: whose norm and optimizer.
        normalize: whether features are scaled to unit length, in MSN's protocol.
        weight_decay: of the linear layers' weights.
        seed: of the initial weights.
    """

    total_steps: int
    warmup_steps: float = 0.0
    protocol: Literal["msn", "mae"] = "msn"
    normalize: bool = True
    weight_decay: float = 0.0
    seed: int = 0


class LinearLearner:
    """The classifiers, each with its learning rate, on top of one frozen encoder.

    Args:
        encoder: on the device that all computes on.
        settings: of each classifier.
        training: of all.
        classes: number of classes.
        bf16: whether the encoder computes under bfloat16 autocast.
    """

    PHASES: ClassVar[tuple[str, ...]] = ("encoder forward", "classifiers", "backward", "optimizer")

    def __init__(
        self,
        encoder: Encoder,
        settings: list[HeadSettings],
        training: Training,
        *,
        classes: int,
        bf16: bool,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.device = encoder.device
        self.settings, self.bf16 = settings, bf16
        mae = training.protocol == "mae"
        blocks = max(each.num_blocks for each in settings)
        self.taps = Taps(blocks, norm=mae and isinstance(encoder, VisionTransformer))
        self.heads = LinearHeads(
            settings,
            dim=encoder.embed_dim,
            classes=classes,
            normalize=training.normalize and not mae,
            batch_norm=mae,
            seed=seed64(training.seed, Stream.INIT),
        ).to(self.device)
        self.replica = collectives.replicated(self.heads)
        groups = self._groups(training.weight_decay)
        self.optimizer = LARS(groups) if mae else MomentumSGD(groups)
        self.rate = partial(
            warmup_cosine,
            warmup=training.warmup_steps,
            total=training.total_steps,
            start=0.0,
            final=0.0,
        )

    @property
    def names(self) -> list[str]:
        return [str(each) for each in self.settings]

    def learning_rate(self, step: int) -> float:
        return self.rate(step, peak=self.settings[0].lr)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        self.heads.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step, peak=group["peak"])
        with record_function("encoder forward"):
            features = self.features(images)
        with record_function("classifiers"):
            logits = self.replica(features)
            count = len(self.settings)
            rows = F.cross_entropy(logits.flatten(0, 1), labels.repeat(count), reduction="none")
            losses: Tensor = rows.unflatten(0, (count, -1)).mean(dim=1)
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            losses.sum().backward()  # the classifiers share no weight: each gets its own gradient
        with record_function("optimizer"):
            self.optimizer.step()
        return losses.detach()

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads.eval()(self.features(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Compute class tokens of as many last blocks as are needed: (B, blocks * D)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.encoder.features(images, self.taps).to(images.dtype)

    def state(self) -> State:
        return {CLASSIFIER: self.heads.state_dict(), "opt": self.optimizer.state_dict()}

    def load_state(self, found: Found) -> None:
        # One of several that has diverged leaves the others alone.
        alone = len(self.settings) == 1
        weights = found.state[CLASSIFIER]
        checkpoint.load_weights(self.heads, weights, path=found.path, key=CLASSIFIER, finite=alone)
        if not any(all(map(all_finite, head.state_dict().values())) for head in self.heads.heads):
            raise checkpoint.unusable(found.path, CLASSIFIER, "not one of them is finite")
        names = self.optimizer.MOMENTS
        moments = resumable.moments(found, self.optimizer, names, finite=alone)
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
    data, optimization, meta = config.data, config.optimization, config.meta
    weights = read_weights(config)
    most = weights.architecture.size.tapped
    if max(optimization.num_blocks) > most:
        raise UserError(
            f"optimization.num_blocks {max(optimization.num_blocks)} is more than the"
            f" {counted(most, 'block')} of the encoder that features are read from; lower it"
        )
    crop = RandomCrop(data.image_size, data.crop_scale, data.flip, meta.seed, data.interpolation)
    job = build_job(
        config,
        weights,
        train_view=replace(crop, clamp=meta.protocol == "mae"),
        val_view=CenterCrop(data.image_size, data.interpolation),
        batch_size=optimization.batch_size,
        epochs=optimization.epochs,
        device=device,
    )
    encoder = weights.trainable().to(device)
    if meta.compile:
        require_compiler(device)
        encoder.compile_blocks()
    training = Training(
        job.total_steps,
        optimization.warmup * job.steps_per_epoch,
        meta.protocol,
        optimization.normalize,
        optimization.weight_decay,
        meta.seed,
    )
    return job, LinearLearner(
        encoder,
        [HeadSettings(*pair) for pair in product(optimization.lr, optimization.num_blocks)],
        training,
        classes=job.classes,
        bf16=use_bf16(meta.precision, device),
    )
