"""Checkpoint files: names, atomic writing, and reading without running code.

One file holds one dict: the weights of the method under its keys, the official `opt`, `epoch`,
`batch_size`, `world_size`, `lr` and `loss`, and `step`, `config`, `version`, `mean` and `std` that
the images were normalized with, and the `digest` of all tensors.
`epoch` counts finished epochs, `step` finished optimizer steps; all that a run draws is keyed by
its step, so nothing else is needed to go on exactly.
"""

import errno
import os
import pickle
import pickletools
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msn.runtime import collectives, integrity, sharding
from msn.runtime.collectives import agreed, of_rank_0
from msn.runtime.errors import UserError, printable
from msn.runtime.files import open_regular, replacing, writing
from msn.runtime.log import logger

VERSION = 1
State = dict[str, Any]

CLASSIFIER = "classifier"  # a key that tells a classifier from a run of pre-training
# What wrappers of modules (compiled, sharded, checkpointed, parallel) put between a name's parts.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")


STAND_INS: tuple[Any, ...] = (
    (SimpleNamespace, "argparse.Namespace"),
    (PurePosixPath, "pathlib.PosixPath"),
    (OrderedDict, "yacs.config.CfgNode"),
)
"""What takes the place of objects in checkpoints of other programs (MAE, SimMIM), which run no
code of theirs: class and name in the file."""


class Found(NamedTuple):
    """A checkpoint that could be read."""

    path: Path
    state: State


def latest_path(folder: Path, tag: str) -> Path:
    """Give the path of the checkpoint that a run resumes from."""
    return folder / f"{tag}-latest.pth.tar"


def best_path(folder: Path, tag: str) -> Path:
    """Give the path of the best epoch's classifiers, of a run that learns from labels."""
    return folder / f"{tag}-best.pth.tar"


def epoch_path(folder: Path, tag: str, epochs: int) -> Path:
    """Give the path of the checkpoint that is kept after a number of finished epochs."""
    return folder / f"{tag}-ep{epochs}.pth.tar"


def trace_path(folder: Path, tag: str) -> Path:
    """Give the path of the Chrome trace that `--profile` writes."""
    return folder / f"{tag}-trace.json"


def step_path(folder: Path, tag: str, step: int) -> Path:
    """Give the path of a checkpoint before the latest, made after a number of finished steps."""
    return folder / f"{tag}-step{step}.pth.tar"


def lock_path(folder: Path, tag: str) -> Path:
    """Give the path of the lock file, which says who is writing to the folder."""
    return folder / f"{tag}.lock"


def config_path(folder: Path, tag: str) -> Path:
    """Give the path of the resolved config, written beside the run."""
    return folder / f"{tag}-config.yaml"


def prepare_folder(folder: Path) -> None:
    """Create the folder of a run and prove that it can be written to.

    Raises:
        UserError: it cannot.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def save(path: Path, state: State) -> None:
    """Write a checkpoint so that after a crash either the old or the new file is complete.

    Raises:
        UserError: the file could not be written; the previous one is as it was.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({**state, integrity.KEY: integrity.digest(state)}, file)
        except RuntimeError as error:  # what torch makes of a failed write
            raise OSError(errno.ENOSPC, "the disk may be full") from error


def save_latest(folder: Path, tag: str, state: State, *, before: int | None, keep: int) -> None:
    """Replace the latest checkpoint, and keep the `keep` - 1 newest before it, named by step.

    Args:
        before: step of the one that is replaced, None if there is none.

    Raises:
        UserError: as `save`.
    """
    latest = latest_path(folder, tag)
    if keep > 1 and before is not None and before != state["step"]:
        earlier = step_path(folder, tag, before)
        with writing(earlier):
            earlier.unlink(missing_ok=True)
            try:
                os.link(latest, earlier)
            except OSError:  # no hard links on this file system
                os.replace(latest, earlier)
    save(latest, state)
    for path in _numbered(folder, tag, "step")[keep - 1 :]:
        path.unlink(missing_ok=True)


def load(path: Path, key: str | None = "target_encoder") -> State:
    """Read a checkpoint onto the CPU: only tensors and plain values, never code.

    Args:
        path: of the file.
        key: what a checkpoint of the wanted kind holds; None takes any.

    Raises:
        UserError: there is no such file, it is damaged, or it holds pickled code.
    """
    try:
        if not integrity.has_its_sums(path):
            raise _damaged(path)
        state = _load_plain(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except pickle.UnpicklingError as error:
        if ("Unsupported" in str(error) or "GLOBAL" in str(error)) and _is_pickle(path):
            raise UserError(
                f"{path}: holds pickled code, which is never run;"
                " save it again as tensors and plain values only"
            ) from None
        raise _damaged(path) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError):
        raise _damaged(path) from None
    if not isinstance(state, dict) or key not in (None, *state):
        key = key or "target_encoder"
        raise UserError(f"{path}: not the checkpoint that is needed, it has no key '{key}'")
    if not integrity.has_its_digest(state):
        raise _damaged(path)
    state.pop(integrity.KEY, None)
    return state


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such checkpoint; check the path")
    if isinstance(error, IsADirectoryError):
        return UserError(
            f"{path}: is a folder; name a checkpoint in it, or make one of a folder of transformers"
            " or timm: python -m msn import FOLDER FILE --as official"
        )
    if error.errno == errno.EINVAL:  # torch looks for the end before the beginning
        return _damaged(path)
    return UserError(f"{path}: cannot be read ({error.strerror}); check the file")


def _is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle to its end or a zip archive; any other is damaged."""
    if zipfile.is_zipfile(path):
        return True
    try:
        with open_regular(path) as file:
            return sum(1 for _ in pickletools.genops(file)) > 0  # takes it apart, runs nothing
    except (ValueError, MemoryError, OverflowError):
        return False


def newest_for_all(find: Callable[[], Found | None], read: Callable[[Path], Found]) -> Found | None:
    """Call `find` on rank 0, and `read` the checkpoint that it found on the other processes.

    All processes call this.

    Raises:
        UserError: of this process, of what it looked for or read.
        PeerLost: another process failed to.
    """
    with agreed():
        found = find() if collectives.rank() == 0 else None
    path = of_rank_0(found and found.path)
    with agreed():
        return found or (read(path) if path else None)


def load_newest(folder: Path, tag: str, key: str = "target_encoder") -> Found | None:
    """Read the newest readable checkpoint of a run; give None if it has no checkpoint.

    A damaged newest file is moved aside (`.damaged`) and logged; the one before is taken.

    Raises:
        UserError: there are checkpoints, but none that can be read. Nothing is moved then.
    """
    found, damaged = _first_readable(folder, tag, key)
    if found is None:
        return None
    for broken, reason in damaged:
        os.replace(broken, broken.with_name(broken.name + ".damaged"))
        logger.info(f"{reason}; moved aside, resuming from {found.path.name}")
    return found


def peek_newest(folder: Path, tag: str, key: str = "target_encoder") -> Found | None:
    """Read the checkpoint that `load_newest` would take, without moving any file.

    Raises:
        UserError: there are checkpoints, but none that can be read.
    """
    return _first_readable(folder, tag, key)[0]


def _first_readable(
    folder: Path, tag: str, key: str
) -> tuple[Found | None, list[tuple[Path, UserError]]]:
    """Read the newest readable checkpoint, and list those tried before it with their errors."""
    damaged: list[tuple[Path, UserError]] = []
    for path in _newest_first(folder, tag):
        try:
            return Found(path, load(path, key)), damaged
        except UserError as error:
            damaged.append((path, error))
    if damaged:
        raise UserError(f"{damaged[0][1]}; move it away to start this run from the beginning")
    return None, damaged


def load_weights(
    module: nn.Module,
    weights: Any,
    *,
    path: Path,
    key: str,
    optional: str | None = None,
    finite: bool = True,
) -> None:
    """Load a state dict strictly, dropping what wrappers of modules add to names.

    Of the names that begin with `optional` all may be missing: the module keeps its own.

    Raises:
        UserError: names are missing or left over, shapes differ, or what is there are no numbers
            or, unless `finite` is false, not finite. The module is untouched.
    """
    weights = state_dict(weights, f"{path}: '{key}'")
    own = module.state_dict()
    if optional is not None and not any(name.startswith(optional) for name in weights):
        weights |= {name: own[name] for name in own if name.startswith(optional)}
    problems = differences(weights, own)
    if problems:
        raise mismatch(path, key, problems)
    for name, tensor in weights.items():
        like = own[name].dtype
        both = tensor.dtype.is_floating_point and like.is_floating_point
        dtype = tensor.dtype if both else like
        problem = integrity.unfit(tensor, tensor.shape, dtype, finite=finite)
        if problem:
            raise unusable(path, key, f"{name} {problem}")
    module.load_state_dict({name: sharding.shared_out(weights[name], own[name]) for name in own})


def require_fit(value: Any, own: Tensor, path: Path, key: str) -> None:
    """Refuse a value that cannot be loaded into the model's own tensor; None passes.

    Raises:
        UserError: it is of another shape, or no finite tensor of the type.
    """
    if isinstance(value, Tensor) and value.shape != own.shape:
        shapes = f"the file has {tuple(value.shape)}, the model {tuple(own.shape)}"
        raise mismatch(path, key, [shapes])
    problem = value is not None and integrity.unfit(value, own.shape, own.dtype, finite=True)
    if problem:
        raise unusable(path, key, problem)


@torch.no_grad()
def load_tensor(tensor: Tensor | None, own: Tensor) -> None:
    """Copy a full tensor into the model's own, sharded if that is; None leaves it unchanged."""
    if tensor is not None:
        own.copy_(sharding.shared_out(tensor, own))


def state_dict(value: Any, where: str) -> dict[str, Tensor]:
    """Check that `value` is a state dict; give it without what `WRAPPERS` add to its names.

    Raises:
        UserError: it is not; `where` says what was looked at.
    """
    if not isinstance(value, dict) or not value or not all(map(torch.is_tensor, value.values())):
        raise UserError(f"{where} is not a state dict; it must map names to tensors")
    odd = next((name for name in value if not isinstance(name, str)), None)
    if odd is not None:
        raise UserError(f"{where} is not a state dict: {shown(odd)} is no name of a tensor")
    bare = {".".join(p for p in name.split(".") if p not in WRAPPERS): name for name in value}
    if len(bare) < len(value):
        twice = next(name for name in value if name not in bare.values())
        raise UserError(f"{where} holds {shown(twice)} twice, with and without a wrapper's prefix")
    return {name: value[given] for name, given in bare.items()}


def differences(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List what is missing, unknown or of another shape in `given`."""
    problems = [f"{name} missing" for name in expected if name not in given]
    problems += [f"{shown(name)} unknown" for name in given if name not in expected]
    problems += [
        f"{name} is {tuple(given[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return problems


def listed(problems: list[str]) -> str:
    """Join the first five problems into one line that says how many more there are."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more


def shown(name: object) -> str:
    """Shorten a name or value of a file, which may be anything, to a few printable characters."""
    text = printable(str(name))
    return text if len(text) <= 60 else f"{text[:60]}..."


def mismatch(path: Path, key: str, problems: list[str]) -> UserError:
    """Build the error for weights that are of another model."""
    return UserError(
        f"{path}: '{key}' is of another model: {listed(problems)};"
        " give the config (meta, criterion.num_proto, data sizes) that it was trained with"
    )


def unusable(path: Path, key: str, problem: str) -> UserError:
    """Build the error for weights that no model can have."""
    return UserError(
        f"{path}: '{key}' cannot be used: {problem}; take another file, such as an earlier save"
    )


def _load_plain(path: Path) -> Any:
    """Read a file of torch: tensors, plain values, and options of other programs (`STAND_INS`)."""
    with warnings.catch_warnings(), torch.serialization.safe_globals([*STAND_INS]):
        warnings.simplefilter("ignore")  # of old forms of files and tensors, for programmers
        return torch.load(path, map_location="cpu", weights_only=True)


def _newest_first(folder: Path, tag: str) -> list[Path]:
    latest, best = latest_path(folder, tag), best_path(folder, tag)
    earlier = [*_numbered(folder, tag, "step"), *_numbered(folder, tag, "ep")]
    return [latest] * latest.exists() + earlier + [best] * best.exists()


def _numbered(folder: Path, tag: str, kind: str) -> list[Path]:
    """List the files `TAG-KINDn.pth.tar`, the largest n first."""
    numbered = []
    for path in folder.glob("*.pth.tar"):
        match = re.fullmatch(re.escape(f"{tag}-{kind}") + r"(\d+)\.pth\.tar", path.name)
        if match:
            numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: truncated, damaged, or not a checkpoint")
