"""What the commands that run a config file have in common."""

import argparse
from typing import TypeVar

import torch

from msn.config import ConfigFile, load
from msn.devices import choose_device

File = TypeVar("File", bound=ConfigFile)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the config file, its overrides and the devices."""
    parser.add_argument("--fname", required=True, metavar="CONFIG", help="YAML config file")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="cpu, cuda:0, ...; auto takes the first GPU if there is one",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


def read(options: argparse.Namespace, kind: type[File]) -> tuple[File, torch.device]:
    """The config, whose notices are printed, and the device to run it on.

    Raises:
        UserError: either is wrong.
    """
    # `--devices cpu section.key=value`: what has an equals sign is no device.
    overrides = options.overrides + [name for name in options.devices if "=" in name]
    names = [name for name in options.devices if "=" not in name] or ["auto"]
    device = choose_device(names)
    config = load(kind, options.fname, overrides)
    for notice in config.notices():
        print(f"note: {notice}")
    return config, device
