"""Section `criterion`: the loss."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from msn.config.sections.base import Choices, Divisor, Few, Million, NonNegative, PathText, Section

PRIOR_TAGS = ("prior as text", "prior as mapping")


def _named_prior(prior: object) -> object:
    return {"power_law": 0.25} if prior == "power_law" else prior


def _prior_tag(prior: object) -> str:
    return PRIOR_TAGS[isinstance(prior, (dict, PowerLaw))]


class PowerLaw(Section):
    """Prior weights proportional to k**-power_law for k = 1..num_proto (PMSN)."""

    power_law: Annotated[float, Field(ge=-10, le=10)]
    """Exponent; 0 is uniform, 0.25 the value of the PMSN paper."""


Prior = Annotated[
    Annotated[PathText, Tag(PRIOR_TAGS[0])] | Annotated[PowerLaw, Tag(PRIOR_TAGS[1])],
    Discriminator(_prior_tag),
    BeforeValidator(_named_prior),
]


class Criterion(Section):
    """The loss."""

    batch_size: Million | None = 64
    """Images per process and micro-batch."""
    global_batch_size: Million | None = None
    """Images per step over all processes and micro-batches; replaces batch_size."""
    num_proto: Choices = 1024
    """Number of prototypes K."""
    temperature: Divisor = 0.1
    """Softmax temperature of anchors and targets before sharpening."""
    start_sharpen: Divisor = 0.25
    """Sharpening temperature of the targets at the first step."""
    final_sharpen: Divisor = 0.25
    """Sharpening temperature of the targets at the end of the stretched schedule."""
    me_max: bool = True
    """Add memax_weight * KL(mean anchor assignment || prior)."""
    memax_weight: NonNegative = 1.0
    """Weight of that term: 1 with Sinkhorn, 5 without (paper, Table 11)."""
    use_ent: bool = False
    """Add ent_weight * entropy of the anchor assignments."""
    ent_weight: NonNegative = 0.0
    """Weight of the entropy term. Absent means 0 here, 1 in the official code, whose shipped file
    says 0."""
    use_sinkhorn: bool = True
    """Balance the targets over the prototypes with Sinkhorn-Knopp."""
    sinkhorn_iterations: Few = 3
    """Row and column normalizations of Sinkhorn-Knopp."""
    freeze_proto: bool = False
    """Keep the prototypes at their initial values."""
    prior: Prior = "uniform"
    """What the mean assignment is drawn to: uniform (MSN), power_law (exponent 0.25),
    {power_law: EXPONENT}, or the path of a file with num_proto weights."""

    @model_validator(mode="before")
    @classmethod
    def _global_batch_replaces_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("global_batch_size"):
            return {"batch_size": None, **values}
        return values

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.batch_size and self.global_batch_size:
            rule = f"{self.batch_size} and criterion.global_batch_size {self.global_batch_size}"
            yield "batch_size", f"{rule} are both given; set either to null"
        if not self.batch_size and not self.global_batch_size:
            yield "batch_size", "is null and there is no criterion.global_batch_size; give either"
