"""The device that a command computes on."""

from collections.abc import Sequence

import torch

from msn.errors import UserError


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
