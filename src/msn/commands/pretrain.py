"""`msn pretrain`, also `main.py`: pre-train an encoder, or print what that would take."""

import argparse

from msn.config import load_config
from msn.devices import choose_device
from msn.plan import describe
from msn.pretrain import pretrain


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--fname", required=True, metavar="CONFIG", help="YAML config file")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="cpu, cuda:0, ...; auto takes the first GPU if there is one",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, and do nothing"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


def run(options: argparse.Namespace) -> None:
    """Run the experiment of the config."""
    # `--devices cpu section.key=value`: what has an equals sign is no device.
    overrides = options.overrides + [name for name in options.devices if "=" in name]
    names = [name for name in options.devices if "=" not in name] or ["auto"]
    device = choose_device(names)
    config = load_config(options.fname, overrides)
    for notice in config.notices():
        print(f"note: {notice}")
    if options.dry_run:
        print(describe(config, device))
    else:
        pretrain(config, device)
