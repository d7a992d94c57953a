"""Read a config, start the processes and run: shared by all commands that run a config file."""

import argparse
import glob
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from msn.cli.terminal import say_written
from msn.config.kinds import Config, EvaluationFile
from msn.config.load import load
from msn.evaluation.job import Job
from msn.evaluation.plan import describe
from msn.evaluation.resuming import Learner
from msn.runtime import collectives
from msn.runtime.devices import choose_device
from msn.runtime.distributed import World, find_world, joined
from msn.runtime.errors import UserError
from msn.runtime.identity import identity
from msn.runtime.log import logger
from msn.runtime.spawn import spawn
from msn.train.learning import learn
from msn.train.profiling import profile_learning

File = TypeVar("File", bound=Config | EvaluationFile)
Evaluation = TypeVar("Evaluation", bound=EvaluationFile)


def read(options: argparse.Namespace, kind: type[File]) -> tuple[File, list[torch.device], World]:
    """Read the config, the devices to run it on, and the processes that the environment tells of.

    Raises:
        UserError: any of them is wrong.
    """
    world = find_world()
    devices = [choose_device(name, world.local_rank) for name in _device_names(options)]
    if len(devices) > 1 and world.size > 1:
        raise UserError(
            f"--devices {' '.join(_device_names(options))}: the environment says that this is"
            f" {world} already; name one device, or none"
        )
    return load(kind, options.fname, _overrides(options)), devices, world


def run(
    command: str,
    options: argparse.Namespace,
    kind: type[File],
    work: Callable[[File, torch.device], object],
) -> None:
    """Run a command as one process of a run, or start one process for each device.

    Raises:
        UserError: the request is wrong, or the processes do not find each other.
    """
    config, devices, world = read(options, kind)
    if len(devices) > 1:
        timeout = f"--start-timeout={options.start_timeout}"
        words = [*command.split(), "--fname", str(options.fname), timeout, *_overrides(options)]
        sys.exit(spawn(words, _device_names(options)))
    if world.rank == 0:
        for notice in config.notices():
            logger.info(f"note: {notice}")
    settings = identity(config.model_dump(mode="json"))
    place = Path(config.logging.folder), config.logging.write_tag
    before = _files(*place)
    with joined(
        world,
        devices[0],
        identity=settings,
        timeout=options.start_timeout,
        patience=config.meta.collective_timeout,
    ):
        work(config, devices[0])
    if world.rank == 0:
        after = _files(*place)
        say_written(*sorted(path for path in after if after[path] != before.get(path)))


def evaluate(
    name: str,
    options: argparse.Namespace,
    kind: type[Evaluation],
    prepare: Callable[[Evaluation, torch.device], tuple[Job, Learner]],
) -> None:
    """Train and measure what the config describes, and print the table; or plan or profile it.

    Args:
        name: of the evaluation, as in `msn evaluate NAME`.
        options: of the command.
        kind: of the config file.
        prepare: builds what there is to learn, and the learner.
    """
    if options.dry_run:
        config, devices, world = read(options, kind)
        job, learner = prepare(config, devices[0])
        print(describe(config, job, learner.names, devices[0], max(world.size, len(devices))))
        return
    if options.profile:
        profile = partial(profile_learning, steps=options.profile, prepare=prepare)
        run(f"evaluate {name} --profile {options.profile}", options, kind, profile)
        return

    def work(config: Evaluation, device: torch.device) -> None:
        table = learn(config, *prepare(config, device))
        if collectives.rank() == 0:
            print(table)

    run(f"evaluate {name}", options, kind, work)


def _files(folder: Path, tag: str) -> dict[Path, int]:
    """Find the files of a run and when each was written."""
    found = folder.glob(f"{glob.escape(tag)}[-_]*")
    return {path: path.stat().st_mtime_ns for path in found if path.suffix != ".tmp"}


def _overrides(options: argparse.Namespace) -> list[str]:
    # `--devices cpu section.key=value`: what has an equals sign is no device.
    named = [*options.overrides, *(name for name in options.devices if "=" in name)]
    return [*named, *["data.skip_bad=true"] * options.skip_bad]


def _device_names(options: argparse.Namespace) -> list[str]:
    return [name for name in options.devices if "=" not in name] or ["auto"]
