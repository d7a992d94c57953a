"""Build the parts of a run from its config.

Nothing is read but the list of images, nothing written but the copy that `meta.copy_data` asks for.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from msn.config.kinds import Config
from msn.config.sections.data import Data
from msn.data.draws import ViewSpec
from msn.data.sources import Source, open_source
from msn.data.staging import stage
from msn.methods import Method, method_of
from msn.methods.optim import FiniteGuard, build_optimizer
from msn.methods.schedules import Schedules
from msn.runtime import collectives, sharding
from msn.runtime.devices import require_compiler, use_bf16
from msn.runtime.errors import UserError
from msn.runtime.keyed import Stream, seed64
from msn.runtime.wording import counted


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
        """Number of images of one process in a step."""
        return self.micro * self.accumulate

    @property
    def total(self) -> int:
        """Number of images in a step over all processes: the global batch size."""
        return self.own * self.processes

    def __str__(self) -> str:
        parts = counted(self.accumulate, "micro-batch"), counted(self.processes, "process")
        return f"{self.total} = {self.micro} x {' x '.join(parts)}"


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
        clip_grad: largest gradient norm of what the method clips, None for no limit.
        seed: of every draw.
        batch: how the images of a step are shared out.
        steps_per_epoch: whole batches in the training images.
        total_steps: length of the run.
    """

    model: Method
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

    def built_anew(self, config: Config) -> Method:
        """Build the method once more, with its initial weights, on the CPU."""
        return build_model(type(self.model), config, self.source.channels, self.steps_per_epoch)

    def replicated(self) -> "Parts":
        """Replicate the model over all processes for data parallelism, unless it is sharded."""
        if sharding.is_sharded(self.model):
            return self
        return replace(self, replica=collectives.replicated(self.model))


def build_parts(
    config: Config,
    device: torch.device,
    method: type[Method] | None = None,
    processes: int | None = None,
) -> Parts:
    """Build all parts of a run, checking first what is cheap to check.

    Args:
        config: of the run.
        device: of this process.
        method: a method of one's own; None takes the one that `meta.method` names.
        processes: that the run will have; None counts those that there are.

    Raises:
        UserError: a folder or file that the config names is missing or wrong.
    """
    data = local_copy(config.data) if config.meta.copy_data else config.data
    source = open_source(data, "train")
    batch = share_out(config, processes or collectives.world_size())
    steps = steps_per_epoch(batch, len(source))
    model = build_model(method or method_of(config), config, source.channels, steps)
    if config.meta.shard:
        sharding.shard(model, model.networks(), device)
    model.to(device)
    bf16 = use_bf16(config.meta.precision, device)
    for network in model.networks():
        network.use_fused_attention(not (bf16 and device.type == "cpu"))
        if config.meta.compile:
            require_compiler(device)
            network.compile_blocks()
    for network in model.trained_networks():
        network.recompute_activations(config.meta.checkpoint_activations)
    return Parts(
        model=model,
        replica=model,
        optimizer=build_optimizer(model.parameter_groups()),
        schedules=model.schedules(config, steps, batch.total),
        guard=FiniteGuard(device),
        source=source,
        views=model.view_spec(config),
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
    """Divide the images of a step among a number of processes.

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
    """Count the full batches in an epoch over a number of images.

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
    """Give the `data` section with its images on local disk, copied there if necessary."""
    if not data.root_path:
        return data
    place = Path(data.root_path) / data.image_folder
    scratch = Path(data.scratch or tempfile.gettempdir())
    copy = stage(place, scratch)
    return data.model_copy(update={"root_path": str(copy), "image_folder": ""})


def build_model(
    method: type[Method], config: Config, channels: int, steps_per_epoch: int
) -> Method:
    """Build the method on the CPU; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(config.meta.seed, Stream.INIT))
        return method.build(config, channels, steps_per_epoch)
