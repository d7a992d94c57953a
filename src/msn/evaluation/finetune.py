"""Fine-tuning: train encoder and classifier together, with MAE's recipe as MSN uses it.

Its parts are timm's: RandAugment, random erasing, mixup and cutmix, layer-wise learning rates, the
moving average. What they draw is keyed by the step, so that a resumed run draws the same.
"""

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from msn.config.kinds import FinetuneConfig
from msn.config.sections.evaluation import FinetuneCriterion
from msn.data.augment import Augment, Center, seeded
from msn.evaluation.job import Job, build_job, read_weights
from msn.interop.weights import Weights
from msn.methods.optim import ADAM_MOMENTS, step_unless
from msn.methods.schedules import warmup_cosine
from msn.models.classifier import NOT_DECAYED, Classifier
from msn.runtime import checkpoint, collectives, resumable
from msn.runtime.checkpoint import CLASSIFIER, Found, State
from msn.runtime.devices import require_compiler, use_bf16
from msn.runtime.errors import UserError
from msn.runtime.keyed import Stream, seed64
from msn.runtime.log import logger

if TYPE_CHECKING:
    from timm.data import Mixup


class FinetuneLearner:
    """A classifier that is trained with its encoder.

    Args:
        config: of the run.
        model: on the device that all computes on.
        job: what there is to learn.
    """

    PHASES: ClassVar[tuple[str, ...]] = ("mix", "forward", "backward", "gradient norm", "optimizer")
    names = ("finetune",)

    def __init__(self, config: FinetuneConfig, model: Classifier, job: Job) -> None:
        from timm.data.random_erasing import RandomErasing
        from timm.utils import ModelEmaV3

        optimization = config.optimization
        self.model, self.device = model, model.head.weight.device
        self.replica = collectives.replicated(model)
        self.average = ModelEmaV3(model, optimization.ema) if optimization.ema else None
        self.bf16 = use_bf16(config.meta.precision, self.device)
        model.encoder.use_fused_attention(not (self.bf16 and self.device.type == "cpu"))
        self.seed, self.clip_grad = config.meta.seed, optimization.clip_grad
        self.accumulate = optimization.accumulate
        self.schedule = partial(
            warmup_cosine,
            warmup=optimization.warmup * job.steps_per_epoch,
            total=job.total_steps,
            start=0.0,
            peak=optimization.lr,
            final=optimization.final_lr,
        )
        self.optimizer = build_optimizer(
            model,
            weight_decay=optimization.weight_decay,
            layer_decay=optimization.layer_decay,
        )
        self.mix = build_mix(config.criterion, job.classes)
        self.smoothing = config.criterion.label_smoothing
        self.erase = RandomErasing(config.data.erasing, mode="pixel", device=self.device)

    def learning_rate(self, step: int) -> float:
        return self.schedule(step)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        # Mixing, erasing and stochastic depth draw from the global generators.
        with seeded(seed64(self.seed, Stream.STEP, step, collectives.rank())):
            parts = zip(images.chunk(self.accumulate), labels.chunk(self.accumulate), strict=True)
            *others, last = parts
            with collectives.not_exchanging(self.replica):
                first = [self._backward(*part) for part in others]
            losses = torch.stack([*first, self._backward(*last)])
        limit = self.clip_grad if self.clip_grad is not None else torch.inf
        with record_function("gradient norm"):
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        losses = losses + 0 * norm  # nan if a gradient is not finite
        with record_function("optimizer"):
            step_unless(self.optimizer, (~losses.isfinite().all()).float())
            if self.average:
                self.average.update(self.model)
        return losses.mean(dim=0, keepdim=True)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        model = (self.average.module if self.average else self.model).eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = model(images)[None]
            return logits

    def state(self) -> State:
        average = {"average": self.average.module.state_dict()} if self.average else {}
        return {
            CLASSIFIER: self.model.state_dict(),
            **average,
            "num_heads": self.model.encoder.num_heads,
            "pool": self.model.pool,
            "opt": self.optimizer.state_dict(),
        }

    def load_state(self, found: Found) -> None:
        path, state = found
        checkpoint.load_weights(self.model, state[CLASSIFIER], path=path, key=CLASSIFIER)
        if self.average:
            average = state.get("average", state[CLASSIFIER])
            checkpoint.load_weights(self.average.module, average, path=path, key="average")
        moments = resumable.moments(found, self.optimizer, ADAM_MOMENTS)
        self.optimizer.load_state_dict(moments)

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradient of one micro-batch to those before, and return its loss."""
        with record_function("mix"):
            images = self.erase(images)
            images, targets = self.mix(images, labels) if self.mix else (images, labels)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with autocast, record_function("forward"):
            logits = self.replica(images)
        # The mix has smoothed its labels already.
        smoothing = 0.0 if self.mix else self.smoothing
        loss = F.cross_entropy(logits.to(images.dtype), targets, label_smoothing=smoothing)
        with record_function("backward"):
            (loss / self.accumulate).backward()
        return loss.detach()


def build_optimizer(
    model: Classifier, *, weight_decay: float, layer_decay: float
) -> torch.optim.AdamW:
    """Build AdamW; each block's learning rate is `layer_decay` times that of the next."""
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(
        model,
        weight_decay=weight_decay,
        no_weight_decay_list=NOT_DECAYED,
        layer_decay=layer_decay,
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


def build_mix(criterion: FinetuneCriterion, classes: int) -> "Mixup | None":
    """Build mixup and cutmix, of which each step uses one; None if both are off."""
    if not criterion.mixup and not criterion.cutmix:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=criterion.mixup,
        cutmix_alpha=criterion.cutmix,
        switch_prob=criterion.switch_prob,
        label_smoothing=criterion.label_smoothing,
        num_classes=classes,
    )


def build_model(config: FinetuneConfig, weights: Weights, classes: int) -> Classifier:
    """Build a pre-trained encoder with a new classifier, drawn from the run's seed, on the CPU.

    Raises:
        UserError: more blocks are to be trained than there are.
    """
    meta, depth = config.meta, weights.architecture.size.depth
    if meta.trained_blocks and meta.trained_blocks > depth:
        raise UserError(
            f"meta.trained_blocks {meta.trained_blocks} is more than the {depth} blocks of the"
            " encoder; lower it, or leave it out to train all"
        )
    pool = meta.pool or ("patches" if weights.has_idle_class_token else "cls")
    if pool != (meta.pool or "cls"):
        logger.info(
            "note: the classifier reads the mean patch, as the encoder's pre-training had no loss"
            " on the class token; meta.pool=cls reads that"
        )
    with seeded(seed64(meta.seed, Stream.INIT)):
        return Classifier(
            weights.trainable(),
            classes,
            pool=pool,
            drop_path_rate=meta.drop_path_rate,
            trained_blocks=meta.trained_blocks,
        )


def prepare(config: FinetuneConfig, device: torch.device) -> tuple[Job, "FinetuneLearner"]:
    """Build the job and the learner of a fine-tuning.

    Raises:
        UserError: something that was asked for cannot be done.
    """
    data, optimization = config.data, config.optimization
    weights = read_weights(config)
    channels = weights.architecture.in_chans
    if channels not in (1, 3):
        raise UserError(
            f"the encoder takes images of {channels} channels, fine-tuning augments those of 1 or 3"
            " only; use another evaluation, such as python -m msn evaluate linear"
        )
    job = build_job(
        config,
        weights,
        train_view=Augment(
            size=data.image_size,
            scale=data.crop_scale,
            flip=data.flip,
            auto_augment=data.auto_augment,
            interpolation=data.interpolation,
            seed=config.meta.seed,
        ),
        val_view=Center(data.image_size, data.crop_pct, data.interpolation),
        batch_size=optimization.batch_size * optimization.accumulate,
        epochs=optimization.epochs,
        device=device,
    )
    model = build_model(config, weights, job.classes).to(device)
    model.encoder.recompute_activations(config.meta.checkpoint_activations)
    if config.meta.compile:
        require_compiler(device)
        model.encoder.compile_blocks()
    return job, FinetuneLearner(config, model, job)
