"""Compare a checkpoint with the run before any of it is used."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from msn.runtime import sharding
from msn.runtime.checkpoint import Found, State
from msn.runtime.errors import UserError
from msn.runtime.identity import changed_keys
from msn.runtime.integrity import unfit

MOST = 2**53  # steps, images, processes: beyond it a float is no longer exact
DEPTH = 16  # of what is nested in a config
NOT_NEGATIVE = frozenset({"step", "exp_avg_sq"})  # of an optimizer's moments


def whole_number(found: Found, key: str, least: int = 0) -> int:
    """Read a counter, such as the number of finished steps, from a checkpoint.

    Raises:
        UserError: it is missing, no whole number, or too small.
    """
    value = found.state.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
        raise refusal(found, key, f"is {value!r:.40} and must be a whole number from {least}")
    return value


def config_changes(found: Found, config: BaseModel) -> list[str]:
    """List the config keys that differ from the run's so far, as 'section.key: old -> new'.

    Raises:
        UserError: the checkpoint's config is missing, or none.
    """
    before = found.state.get("config")
    if not isinstance(before, dict) or not _is_plain(before):
        raise refusal(found, "config", f"is {before!r:.40} and must map names to values")
    given = config.model_dump(mode="json", exclude_defaults=True)
    return changed_keys(before, config.model_dump(mode="json"), given)


def moments(
    found: Found, optimizer: torch.optim.Optimizer, names: Sequence[str], *, finite: bool = True
) -> State:
    """Build what `optimizer.load_state_dict` takes: the checkpoint's moments, the run's settings.

    Args:
        found: with the optimizer's state under `opt`.
        optimizer: of the run; not changed.
        names: of each parameter's moments. `step` is a number, the others are shaped as it is.
        finite: whether all numbers have to be finite.

    Raises:
        UserError: it is of another optimizer, or not all there.
    """
    given, own = found.state.get("opt"), optimizer.state_dict()
    if not isinstance(given, dict) or not isinstance(given.get("state"), dict):
        raise refusal(found, "opt", "is not the state of an optimizer")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = given["state"]
    problems = [*_groups(given.get("param_groups"), own["param_groups"])]
    problems += [f"moments of {i!r:.40}, which is no parameter"
                 for i in state if type(i) is not int or not 0 <= i < len(parameters)]  # fmt: skip
    for index, parameter in enumerate(parameters):
        if parameter.requires_grad or index in state:
            problems += _moments(state.get(index), index, parameter, names, finite)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise refusal(found, "opt", f"is of another model: {'; '.join(problems[:5])}{more}")
    taken = {
        index: {name: _taken(state[index][name], name, parameters[index]) for name in names}
        for index in sorted(state)
    }
    return {"state": taken, "param_groups": own["param_groups"]}


def refusal(found: Found, key: str, problem: str) -> UserError:
    """Build the error for a checkpoint that a run cannot resume from."""
    return UserError(
        f"{found.path}: '{key}' {problem}; give the config of the run that it is of, or move the"
        " file away to resume from the one before it"
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Tell whether a value is made of what a config file is made of."""
    if isinstance(value, dict):
        named = all(isinstance(key, str) for key in value)
        return named and depth < DEPTH and all(_is_plain(v, depth + 1) for v in value.values())
    if isinstance(value, (list, tuple)):
        return depth < DEPTH and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, (str, int, float))


def _groups(given: Any, own: list[dict[str, Any]]) -> Iterator[str]:
    if not isinstance(given, list) or len(given) != len(own):
        yield "it has other parameter groups"
        return
    for index, (theirs, ours) in enumerate(zip(given, own, strict=True)):
        indices = theirs.get("params") if isinstance(theirs, dict) else None
        if not _alike(indices, ours["params"]) or indices != ours["params"]:
            yield "it has other parameter groups"
            continue
        for name in theirs.keys() & ours.keys():
            if not _alike(theirs[name], ours[name]):
                yield f"{name} of group {index} is {theirs[name]!r:.40}, not such as {ours[name]}"


def _alike(given: Any, own: Any) -> bool:
    """Tell whether two settings of an optimizer are of the same kind; None is of any."""
    if given is None or own is None:
        return True
    if isinstance(own, (list, tuple)):
        same = isinstance(given, (list, tuple)) and len(given) == len(own)
        return same and all(map(_alike, given, own))
    if isinstance(own, bool) or isinstance(given, bool):
        return isinstance(own, bool) and isinstance(given, bool)
    if isinstance(own, (int, float)):
        return isinstance(given, (int, float)) and math.isfinite(given) and given >= 0
    return type(given) is type(own)


def _moments(
    given: Any, index: int, parameter: Tensor, names: Sequence[str], finite: bool
) -> Iterator[str]:
    if not isinstance(given, Mapping) or given.keys() != set(names):
        yield f"parameter {index} has not the moments {', '.join(names)}"
        return
    for name in names:
        number = name == "step"
        shape = () if number else parameter.shape
        dtype = torch.float32 if number else parameter.dtype
        problem = unfit(given[name], shape, dtype, finite=finite)
        if problem is None and name in NOT_NEGATIVE and (given[name] < 0).any():
            problem = "is negative"
        if problem:
            yield f"{name} of parameter {index} {problem}"


def _taken(value: Tensor, name: str, parameter: Tensor) -> Tensor:
    """Copy a moment, laid out as its parameter is: a fused optimizer counts on that."""
    if name == "step":
        return value.clone()
    own = torch.empty_strided(parameter.shape, parameter.stride(), dtype=value.dtype)
    return sharding.shared_out(own.copy_(value), parameter)
