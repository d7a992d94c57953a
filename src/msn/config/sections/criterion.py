"""Section `criterion`: the batch of a step, which the loss of every method is computed of."""

from collections.abc import Iterator
from typing import Any

from pydantic import model_validator

from msn.config.sections.base import Million, Section


class Criterion(Section):
    """The loss."""

    batch_size: Million | None = 64
    """Images per process and micro-batch."""
    global_batch_size: Million | None = None
    """Images per step over all processes and micro-batches; replaces batch_size."""

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
