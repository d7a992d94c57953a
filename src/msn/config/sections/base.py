"""What all sections share: strict, immutable models, and the types of their keys."""

import os
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _expanded(text: str) -> str:
    """Expand a leading `~` to the home folder, as a shell does."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError("must be in the home folder of a user that there is; or write ./~...")
    return path


# The ranges of the keys are wide: what lies outside is a slip, and would end in a lack of memory,
# in an overflow, or in a run that never gets anywhere.
Whole = Annotated[int, Field(ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Million = Annotated[int, Field(ge=1, le=1_000_000)]
"""Images of a batch, epochs."""
Choices = Annotated[int, Field(ge=2, le=1_000_000)]
"""Classes, prototypes: one of them alone would say nothing."""
Few = Annotated[int, Field(ge=1, le=1000)]
"""What each costs time or memory: blocks, views, channels, repetitions."""
Side = Annotated[int, Field(ge=1, le=4096)]
"""Side of a square view or patch, px."""
Width = Annotated[int, Field(ge=1, le=65_536)]
"""Numbers that a layer gives for a token."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NonNegative = Annotated[float, Field(ge=0, le=1000)]
"""Learning rates, weight decay, weights of terms."""
Positive = Annotated[float, Field(gt=0, le=1000)]
"""The same, where 0 means that nothing would be done."""
Divisor = Annotated[float, Field(ge=0.0001, le=1000)]
"""Temperatures and deviations: values divided by less would overflow."""
GradientNorm = Annotated[float, Field(gt=0, le=1_000_000)]
EpochSpan = Annotated[float, Field(ge=0, le=1_000_000)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(ge=1, le=86_400)]
NonEmpty = Annotated[str, Field(min_length=1)]
PathOrEmpty = Annotated[str, AfterValidator(_expanded)]
PathText = Annotated[NonEmpty, AfterValidator(_expanded)]
"""A file or folder; whatever a key names on disk is of one of these two."""

Problems = Iterable[tuple[str, str]]
"""(key below the checked section, broken rule with its remedy) pairs."""


def _refuse(problems: Problems) -> None:
    """Raise one validation error that carries all problems, if there are any."""
    found = list(problems)
    if found:
        text = "; ".join(f"{key}: {rule}" for key, rule in found)
        raise PydanticCustomError("rules", "{text}", {"text": text, "problems": found})


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        _refuse(self._problems())
        return self

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, broken rule) pairs for the rules that concern more than one key."""
        yield from ()
