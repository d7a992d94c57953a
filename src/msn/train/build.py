"""From a config to the parts of a run.

Nothing is read but the list of images, nothing written but the copy that `meta.copy_data` asks for.
"""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from msn.config.load import Config
from msn.config.sections.data import Data, Images
from msn.data.draws import ViewSpec
from msn.data.sources import Source, open_source
from msn.data.staging import stage
from msn.methods.msn.model import MSN, Schedule
from msn.methods.msn.prior import read_log_prior
from msn.methods.schedules import cosine, linear, warmup_cosine
from msn.models.encoder import ENCODERS, EncoderSize, VisionTransformer, build_encoder
from msn.models.head import projection_head
from msn.runtime import checkpoint, collectives, sharding
from msn.runtime.devices import require_compiler
from msn.runtime.errors import UserError
from msn.runtime.integrity import unfit
from msn.runtime.keyed import Stream, seed64
from msn.train.optim import FiniteGuard, build_optimizer, parameter_groups


@dataclass(frozen=True)
class Schedules:
    """Hyperparameters as functions of the global step."""

    learning_rate: Schedule
    weight_decay: Schedule
    momentum: Schedule
    sharpening: Schedule


@dataclass(frozen=True)
class Batch:
    """How the images of a step are shared out.

    Attributes:
        micro: images that a process encodes at once.
        accumulate: micro-batches of a process, one after another.
        processes: world size.
    """

    micro: int
    accumulate: int
    processes: int

    @property
    def own(self) -> int:
        """Images of one process."""
        return self.micro * self.accumulate

    @property
    def total(self) -> int:
        """Images of a step: the global batch."""
        return self.own * self.processes

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{self.total} = {self.micro} x {self.accumulate} micro-batches x {processes}"


@dataclass(frozen=True)
class Parts:
    """All that a training step needs, in one place.

    Attributes:
        model: the method, on the device.
        replica: what computes the losses: the model, in `DistributedDataParallel` if several
            processes have all of it.
        optimizer: over the model's trainable parameters.
        schedules: functions of the step.
        guard: notes the first step that was not finite.
        source: training images.
        views: how views are made of an image.
        mean, std: (C,) of the images, on the device.
        device: where the model is.
        bf16: whether the encoders compute under bfloat16 autocast.
        clip_grad: largest gradient norm of the anchor, None for no limit.
        seed: of every draw.
        batch: how the images of a step are shared out.
        steps_per_epoch: whole batches in the training images.
        total_steps: length of the run.
    """

    model: MSN
    replica: nn.Module
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    guard: FiniteGuard
    source: Source
    views: ViewSpec
    mean: Tensor
    std: Tensor
    device: torch.device
    bf16: bool
    clip_grad: float | None
    seed: int
    batch: Batch
    steps_per_epoch: int
    total_steps: int

    def replicated(self) -> "Parts":
        """The parts with the model replicated over all processes, unless it is shared out."""
        if sharding.is_sharded(self.model):
            return self
        return replace(self, replica=collectives.replicated(self.model))

    def load_weights(self, found: checkpoint.Found) -> None:
        """Load anchor, target and prototypes; a file without an anchor gives the target's to it.

        Weights from elsewhere have no projection head: the model keeps the one that was drawn.

        Raises:
            UserError: the weights are of another model.
        """
        path, state = found
        key = "encoder" if "encoder" in state else "target_encoder"
        prototypes = state.get("prototypes")
        own = self.model.prototypes
        if isinstance(prototypes, Tensor) and prototypes.shape != own.shape:
            shapes = f"the file has {tuple(prototypes.shape)}, the model {tuple(own.shape)}"
            raise checkpoint.mismatch(path, "prototypes", [shapes])
        problem = prototypes is not None and unfit(prototypes, own.shape, own.dtype, finite=True)
        if problem:
            raise checkpoint.unusable(path, "prototypes", problem)
        both = ((self.model.anchor, key), (self.model.target, "target_encoder"))
        for module, name in both:
            checkpoint.load_weights(module, state[name], path=path, key=name, optional="fc.")
        if prototypes is not None:
            with torch.no_grad():
                own.copy_(sharding.shared_out(prototypes, own))


def build_parts(config: Config, device: torch.device) -> Parts:
    """Build a run, checking first what is cheap to check.

    Raises:
        UserError: a folder or file that the config names is missing or wrong.
    """
    data = local_copy(config.data) if config.meta.copy_data else config.data
    source = open_images(data, "train")
    batch = share_out(config, collectives.world_size())
    steps = steps_per_epoch(batch, len(source))
    schedules = build_schedules(config, steps)
    model = build_model(config, schedules, source.channels)
    if config.meta.shard:
        sharding.shard(model, [model.anchor, model.target], device)
    model.to(device)
    bf16 = use_bf16(config.meta.precision, device)
    for encoder in (model.anchor, model.target):
        encoder.use_fused_attention(not (bf16 and device.type == "cpu"))
        if config.meta.compile:
            require_compiler(device)
            encoder.compile_blocks()
    model.anchor.recompute_activations(config.meta.checkpoint_activations)
    return Parts(
        model=model,
        replica=model,
        optimizer=build_optimizer(parameter_groups(model.anchor, model.prototypes)),
        schedules=schedules,
        guard=FiniteGuard(device),
        source=source,
        views=view_spec(config),
        mean=torch.tensor(config.data.mean or source.mean, device=device),
        std=torch.tensor(config.data.std or source.std, device=device),
        device=device,
        bf16=bf16,
        clip_grad=config.optimization.clip_grad,
        seed=config.meta.seed,
        batch=batch,
        steps_per_epoch=steps,
        total_steps=steps * config.optimization.epochs,
    )


def share_out(config: Config, processes: int) -> Batch:
    """How so many processes share the images of a step.

    Raises:
        UserError: the global batch that is asked for cannot be shared out evenly.
    """
    accumulate, whole = config.optimization.accumulate, config.criterion.global_batch_size
    if whole is None:
        assert config.criterion.batch_size
        return Batch(config.criterion.batch_size, accumulate, processes)
    micro, rest = divmod(whole, accumulate * processes)
    if rest:
        raise UserError(
            f"criterion.global_batch_size {whole} does not share out evenly over {processes}"
            f" processes x {accumulate} micro-batches; make it a multiple of"
            f" {accumulate * processes}, or change optimization.accumulate"
        )
    return Batch(micro, accumulate, processes)


def steps_per_epoch(batch: Batch, images: int) -> int:
    """Whole batches in an epoch of so many images.

    Raises:
        UserError: there are fewer images than one batch takes.
    """
    if images < batch.total:
        raise UserError(
            f"the batch of {batch} (criterion.batch_size, optimization.accumulate) is more than the"
            f" {images} training images; lower either"
        )
    return images // batch.total


def local_copy(data: Data) -> Data:
    """The `data` section with its images on local disk, copied there if need be."""
    if not data.root_path:
        return data
    place = Path(data.root_path) / data.image_folder
    scratch = Path(data.scratch or tempfile.gettempdir())
    copy = stage(place, scratch, print)
    return data.model_copy(update={"root_path": str(copy), "image_folder": ""})


def open_images(data: Images, split: str) -> Source:
    """The images that a `data` section names."""
    return open_source(
        source=data.source,
        root_path=data.root_path,
        image_folder=data.image_folder,
        split=split,
        channels=data.channels,
        image_list=data.image_list,
        image_key=data.image_key,
        download=data.download,
    )


def view_spec(config: Config) -> ViewSpec:
    """How the `data` section wants views to be made."""
    data = config.data
    return ViewSpec(
        rand_size=data.rand_size,
        focal_size=data.focal_size,
        rand_views=data.rand_views,
        focal_views=data.focal_views,
        rand_crop_scale=data.rand_crop_scale,
        focal_crop_scale=data.focal_crop_scale,
        flip=data.flip,
        color_jitter=data.color_jitter,
        color_jitter_strength=data.color_jitter_strength,
        grayscale=data.grayscale,
        blur=data.blur,
        augment_on=data.augment_on,
    )


def build_schedules(config: Config, steps_per_epoch: int) -> Schedules:
    """The official schedules: horizons of `schedule_stretch` times the run.

    Learning rate and weight decay count whole steps, momentum and sharpening do not round.
    """
    opt, criterion = config.optimization, config.criterion
    horizon = opt.schedule_stretch * opt.epochs * steps_per_epoch
    return Schedules(
        learning_rate=partial(
            warmup_cosine,
            warmup=int(opt.warmup * steps_per_epoch),
            total=int(horizon),
            start=opt.start_lr,
            peak=opt.lr,
            final=opt.final_lr,
        ),
        weight_decay=partial(
            cosine, total=int(horizon), start=opt.weight_decay, final=opt.final_weight_decay
        ),
        momentum=partial(linear, total=horizon, start=opt.ema[0], final=opt.ema[1]),
        sharpening=partial(
            linear, total=horizon, start=criterion.start_sharpen, final=criterion.final_sharpen
        ),
    )


def build_anchor(config: Config, channels: int) -> VisionTransformer:
    """The encoder of the `meta` section with its head, drawn from the run's seed."""
    meta = config.meta
    if meta.encoder:
        size = EncoderSize(**meta.encoder.model_dump())
    else:
        assert meta.model_name
        size = ENCODERS[meta.model_name]
    return build_encoder(
        size,
        image_size=config.data.rand_size,
        in_chans=channels,
        drop_path_rate=meta.drop_path_rate,
        head=projection_head(
            size.embed_dim, meta.hidden_dim, meta.output_dim, batch_norm=meta.use_bn
        ),
    )


def build_model(config: Config, schedules: Schedules, channels: int) -> MSN:
    """MSN as the config describes it, on the CPU; the same weights for the same seed."""
    criterion, data = config.criterion, config.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(config.meta.seed, Stream.INIT))
        return MSN(
            build_anchor(config, channels),
            num_prototypes=criterion.num_proto,
            out_dim=config.meta.output_dim,
            temperature=criterion.temperature,
            sharpening=schedules.sharpening,
            momentum=schedules.momentum,
            log_prior=read_log_prior(criterion.prior, criterion.num_proto),
            sinkhorn_iterations=criterion.sinkhorn_iterations if criterion.use_sinkhorn else 0,
            memax_weight=criterion.memax_weight if criterion.me_max else 0.0,
            ent_weight=criterion.ent_weight if criterion.use_ent else 0.0,
            label_smoothing=data.label_smoothing,
            patch_drop=data.patch_drop,
            mask_scope=data.mask_scope,
            freeze_prototypes=criterion.freeze_proto,
            accumulate=config.optimization.accumulate,
            seed=config.meta.seed,
        )


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast: asked for, or `auto` and the hardware multiplies bfloat16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
