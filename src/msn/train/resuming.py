"""Find and load what a pre-training starts from: its checkpoint, other weights, or nothing."""

import warnings
from pathlib import Path

from msn.config.kinds import Config
from msn.interop import reading
from msn.methods.optim import ADAM_MOMENTS, set_hyperparameters
from msn.runtime import checkpoint, resumable
from msn.runtime.collectives import agreed
from msn.runtime.errors import UserError
from msn.runtime.log import logger
from msn.runtime.resumable import whole_number
from msn.runtime.wording import counted
from msn.train.build import Parts

BEGINNING = "from the beginning"


def resume(config: Config, parts: Parts, folder: Path, tag: str) -> int:
    """Load what the run starts from, and return the number of steps already done.

    In this order: the run's own newest checkpoint, `meta.read_checkpoint` (with
    `meta.load_checkpoint`), `meta.init_from`, nothing. A file without optimizer state warm-starts.
    """
    found = checkpoint.newest_for_all(
        lambda: find(config, parts, folder, tag), lambda path: open_start(config, parts, path)
    )
    with agreed():
        if found is None:
            return 0
        done, said = restore(config, parts, found)
        for text in said:
            logger.info(text)
        return done


def find(config: Config, parts: Parts, folder: Path, tag: str) -> checkpoint.Found | None:
    """Find and read the checkpoint or weights to start from, if there are any.

    Raises:
        UserError: there is none although one is asked for, or it cannot be read.
    """
    found = checkpoint.load_newest(folder, tag)
    if found:
        return found
    if config.meta.load_checkpoint:
        name = config.meta.read_checkpoint
        if name is None:
            raise UserError(
                f"meta.load_checkpoint is true, but {folder} holds no checkpoint '{tag}-*';"
                " set it to false to start from the beginning"
            )
        return open_start(config, parts, folder / name)
    warm = config.meta.init_from
    return open_start(config, parts, Path(warm)) if warm else None


def open_start(config: Config, parts: Parts, path: Path) -> checkpoint.Found:
    """Open a checkpoint to resume exactly, or any file or folder with an encoder to warm-start.

    Raises:
        UserError: it cannot be read.
    """
    exact = str(path) != config.meta.init_from
    heads = parts.model.encoder.num_heads
    return checkpoint.Found(path, reading.read_start(path, num_heads=heads, exact=exact))


def foreseen(config: Config, parts: Parts) -> str:
    """Tell where a run would start from, without changing its files.

    Args:
        config: of the run.
        parts: of it; their weights, which may be without data, are overwritten.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    exists = ""
    try:
        found = checkpoint.peek_newest(folder, tag)
        if found:
            exists = f"a run {folder / tag}-* exists and "
        else:
            found = find(config, parts, folder, tag)
        if found is None:
            return BEGINNING
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights without data, which take none
            done, _ = restore(config, parts, found)
    except UserError as error:
        return f"{exists}would be refused: {error}"
    steps = f"after {done:,} of {parts.total_steps:,} steps"
    return f"{exists}would be resumed {steps}" if exists else f"from {found.path}, {steps}"


def restore(config: Config, parts: Parts, found: checkpoint.Found) -> tuple[int, list[str]]:
    """Resume a run exactly, or warm-start from weights where there is no optimizer state.

    Returns:
        The finished steps, and in words what was done.

    Raises:
        UserError: the checkpoint is of another model, its steps are cut differently, or it holds
            what nothing can go on from.
    """
    path, state = found
    if "opt" not in state or str(path) == config.meta.init_from:
        drawn = ", ".join(f"{key} as drawn" for key in parts.model.load_weights(found))
        weights = f"weights loaded, {drawn}" if drawn else "weights loaded"
        return 0, [f"warm start from {path}: {weights}, optimizer and schedules fresh"]
    try:
        return _continue(config, parts, found)
    except UserError as error:
        raise UserError(
            f"{error}; or begin a new run with another logging.write_tag, from these weights, where"
            f" the model is the same, with meta.init_from={path}"
        ) from None


def _continue(config: Config, parts: Parts, found: checkpoint.Found) -> tuple[int, list[str]]:
    path, state = found
    for key in (*parts.model.CHECKPOINT, "step", "steps_per_epoch", "config"):
        if key not in state:
            raise UserError(
                f"{path}: has optimizer state but no '{key}', so it cannot be continued exactly"
            )
    done = steps_done(config, parts, found)
    changed = resumable.config_changes(found, config)
    parts.model.load_weights(found)
    moments = resumable.moments(found, parts.optimizer, ADAM_MOMENTS)
    parts.optimizer.load_state_dict(moments)
    set_hyperparameters(
        parts.optimizer,
        learning_rate=parts.schedules.learning_rate(done),
        weight_decay=parts.schedules.weight_decay(done),
    )
    said = [f"changed since the checkpoint: {change}" for change in changed]
    return done, [*said, f"resumed from {path}: {done} of {parts.total_steps} steps done"]


def steps_done(config: Config, parts: Parts, found: checkpoint.Found) -> int:
    """Find the step to resume at, for any number of processes with the same global batch.

    Raises:
        UserError: the global batch or the number of images is another one.
    """
    path, step = found.path, whole_number(found, "step")
    per_epoch = whole_number(found, "steps_per_epoch", least=1)
    images = whole_number(found, "batch_size", least=1)
    processes = whole_number(found, "world_size", least=1)
    same = images * processes == parts.batch.total
    if same and per_epoch == parts.steps_per_epoch:
        return step
    if config.meta.allow_batch_change:
        return round(step / per_epoch * parts.steps_per_epoch)
    if same:
        raise UserError(
            f"{path}: was made with {per_epoch} steps per epoch, the config gives"
            f" {parts.steps_per_epoch}; use the same data"
        )
    before = images * processes
    raise UserError(
        f"{path}: was made with a global batch of {before} = {images} x"
        f" {counted(processes, 'process')}, this run has {parts.batch}; set"
        f" criterion.global_batch_size={before}, or meta.allow_batch_change=true"
    )
