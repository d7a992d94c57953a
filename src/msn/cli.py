"""The command line: `main.py` and the installed command `msn`."""

import argparse
import sys
from collections.abc import Sequence

import torch

from msn.config import load_config
from msn.errors import Interrupted, UserError
from msn.plan import describe
from msn.pretrain import pretrain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    options = parse(arguments)
    try:
        device = choose_device(options.devices)
        config = load_config(options.fname, options.overrides)
        for notice in config.notices():
            print(f"note: {notice}")
        if options.dry_run:
            print(describe(config, device))
        else:
            pretrain(config, device)
    except UserError as error:
        prefix = "" if isinstance(error, Interrupted) else "error: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the last saved checkpoint is what there is", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="msn", description="Pre-train a Vision Transformer with Masked Siamese Networks."
    )
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
    options = parser.parse_intermixed_args(arguments)
    # `--devices cpu section.key=value`: what has an equals sign is no device.
    options.overrides += [name for name in options.devices if "=" in name]
    options.devices = [name for name in options.devices if "=" not in name] or ["auto"]
    return options


def choose_device(names: Sequence[str]) -> torch.device:
    """The device to train on.

    Raises:
        UserError: there is no such device, or more than one is named.
    """
    if len(names) > 1:
        raise UserError(f"--devices {' '.join(names)}: this version trains on one device; name one")
    name = names[0]
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--devices {name}: not a device; give cpu or cuda:NUMBER") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"--devices {name}: this machine has {count} GPUs; give cpu or another")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--devices {name}: only cpu and cuda are supported")
    return device


if __name__ == "__main__":
    sys.exit(main())
