"""What a method of pre-training is (`Method`): all that the training loop knows of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from msn.config.kinds import Config
from msn.data.batch import Views
from msn.data.draws import ViewKind, ViewSpec
from msn.methods.schedules import Schedules, msn_schedules
from msn.models.encoder import Encoder, Staged
from msn.runtime import checkpoint, collectives

Fact = tuple[str, str]
"""A line of the dry run: what it is about, and what it says."""


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        loss: to minimize, shape ().
        details: what the method's `metrics` are computed from, where they are asked for.
    """

    loss: Tensor
    details: Any = None


class Reconstruction(NamedTuple):
    """The pixels that a method predicts of images of which its encoder saw a part.

    Attributes:
        masked: (B, H, W) bool, whether a pixel was hidden.
        pixels: (B, C, H, W) normalized, predicted everywhere; those seen had no loss.
        given: what of the original, beside the pixels seen, went into them; empty for nothing.
    """

    masked: Tensor
    pixels: Tensor
    given: str = ""


class Cost(NamedTuple):
    """What an image of a step costs.

    Attributes:
        flops: floating-point operations, forward and backward.
        activation_bytes: memory that is kept for the backward pass.
    """

    flops: float
    activation_bytes: float


class Method(nn.Module, ABC):
    """A model that learns from views without labels.

    A subclass gives what is abstract here; what has a default may be left as it is. It is built on
    the CPU inside a seeded block: weights that it draws are those of the run's seed.

    Attributes:
        CHECKPOINT: key in a checkpoint -> attribute of the method (a module or a tensor). The first
            module under "target_encoder" or "encoder" is what evaluations read.
        METRICS: names of the scalars that `metrics` gives beside "loss".
        COLUMNS: columns of the CSV file; None takes the loop's own and then `METRICS`.
        SHOWN: metrics that a line on the terminal shows behind the loss.
        PHASES: labels of `record_function` in `forward`, in their order.
        REMEDY: what to try where the loss is not finite.
    """

    CHECKPOINT: ClassVar[Mapping[str, str]] = {"encoder": "encoder"}
    METRICS: ClassVar[tuple[str, ...]] = ()
    COLUMNS: ClassVar[tuple[str, ...] | None] = None
    SHOWN: ClassVar[tuple[str, ...]] = ()
    PHASES: ClassVar[tuple[str, ...]] = ()
    REMEDY: ClassVar[str] = (
        "a learning rate too high for this model: lower optimization.lr, lengthen"
        " optimization.warmup, or set meta.precision: fp32"
    )

    @classmethod
    @abstractmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        """List the kinds of views that the method needs of each image."""

    @classmethod
    def view_spec(cls, config: Config) -> ViewSpec:
        """Describe all views of an image."""
        return ViewSpec(cls.view_kinds(config), config.data)

    @classmethod
    @abstractmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "Method":
        """Build the method that a config describes, for images with `channels` channels."""

    @classmethod
    def schedules(cls, config: Config, steps_per_epoch: int, images: int) -> Schedules:
        """Build the schedules of learning rate and weight decay, read at the step that comes next.

        Args:
            config: of the run.
            steps_per_epoch: of it.
            images: of a step, over all processes.
        """
        return msn_schedules(config.optimization, steps_per_epoch)

    @abstractmethod
    def forward(self, views: Views, *, step: int) -> Output:
        """Compute the loss of a batch of normalized views at a global step."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder that is probed, evaluated and exported."""

    @staticmethod
    def probed(encoder: Encoder, images: Tensor) -> Tensor:
        """Compute the features (B, D) that the probe measures; by default the class token."""
        return encoder.features(images)

    def reconstruction(self, images: Tensor, step: int) -> Reconstruction | None:
        """Predict the pixels of normalized images (B, C, H, W), masked as at a step.

        By default None: the method predicts no pixels.
        """
        return None

    def after_step(self, step: int) -> None:
        """Do what follows an optimizer step, such as moving a target; by default nothing."""

    def networks(self) -> Sequence[Staged]:
        """List all networks, whose parts are sharded and compiled one by one."""
        return [self.encoder]

    def trained_networks(self) -> Sequence[Staged]:
        """List those that gradients flow through, whose activations can be recomputed."""
        return self.networks()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Put each trainable parameter into one group of the optimizer.

        By default weights of two or more dimensions are decayed, all others are not.
        """
        return decay_groups(self)

    def clipped(self) -> Iterable[nn.Parameter]:
        """Give the parameters whose gradient norm is logged and clipped; by default all."""
        return self.parameters()

    def hyperparameters(self, step: int) -> dict[str, float]:
        """Give the values of the method's own schedules at a step, for the log."""
        return {}

    def metrics(self, output: Output) -> dict[str, Tensor]:
        """Compute the scalars of a step for the log, over all processes, as tensors on the device.

        All processes call this. The keys are "loss" and `METRICS`.
        """
        return {"loss": collectives.mean(output.loss.detach())}

    def warning(self, metrics: Mapping[str, float], images: int) -> str | None:
        """Describe in one sentence a failure that the metrics of a batch show, if any."""
        return None

    def state(self) -> dict[str, Any]:
        """Collect the weights under their keys in a checkpoint."""
        parts = {key: getattr(self, name) for key, name in self.CHECKPOINT.items()}
        return {
            key: part.state_dict() if isinstance(part, nn.Module) else part.detach()
            for key, part in parts.items()
        }

    def load_weights(self, found: checkpoint.Found) -> list[str]:
        """Load the weights of a checkpoint, or of a file that holds only the evaluated encoder.

        Returns:
            Keys of parts that are not there and stay as drawn, to be told of.

        Raises:
            UserError: they are of another model.
        """
        path, state = found
        for key, name in self.CHECKPOINT.items():
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                checkpoint.load_weights(part, state[key], path=path, key=key)
            else:
                checkpoint.require_fit(state[key], part, path, key)
                checkpoint.load_tensor(state[key], part)
        return []

    @classmethod
    def plan(cls, config: Config, channels: int, steps_per_epoch: int) -> list[Fact]:
        """List the dry run's facts about views, parameters and the method's own schedules."""
        return [
            (f"{kind.name} views", f"{kind.count} x {kind.size} px")
            for kind in cls.view_kinds(config)
        ]

    @classmethod
    def notes(cls, config: Config, images: int) -> list[str]:
        """List settings of a config that are probably a mistake for this many images an epoch."""
        return []

    @classmethod
    def cost(cls, config: Config, channels: int, *, bf16: bool) -> Cost | None:
        """Estimate what one image costs in a step; None if the method has no estimate."""
        return None


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Group the parameters of a module by whether they are decayed, as in the official code.

    Group 0 is decayed: weights of two or more dimensions, so also `pos_embed` and `cls_token`.
    Group 1 is not: biases, 1-D parameters and whatever has "bn" in its name.
    """
    decayed: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim == 1 or "bias" in name or "bn" in name
            (excluded if small else decayed).append(parameter)
    return [
        {"params": decayed, "decayed": True},
        {"params": excluded, "decayed": False, "weight_decay": 0.0},
    ]


def activation_bytes(blocks: Sequence[Any], tokens: int, *, bf16: bool) -> float:
    """Estimate the memory that blocks keep for the backward pass of some tokens.

    Of each token a block keeps two residuals in fp32 and, in the precision of the matrix products,
    query, key, value, the attention's output and the MLP before its GELU (`msn.models.block`).
    """
    width, hidden = blocks[0].mlp.fc1.in_features, blocks[0].mlp.fc1.out_features
    per_token = 2 * 4 * width + (4 * width + hidden) * (2 if bf16 else 4)
    return float(tokens * len(blocks) * per_token)
