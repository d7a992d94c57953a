"""What all sections share: strict, immutable models, and the types of their keys."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Whole = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonEmpty = Annotated[str, Field(min_length=1)]

Problems = Iterable[tuple[str, str]]
"""(key below the checked section, broken rule with its remedy) pairs."""


def _refuse(problems: Problems) -> None:
    """Raise one validation error that carries every problem found."""
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
        """Broken rules that concern more than one key."""
        yield from ()
