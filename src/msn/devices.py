"""The device that a command computes on."""

import torch

from msn.errors import UserError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; for "auto" a GPU of this machine's process, or the CPU.

    Raises:
        UserError: there is no such device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        # SLURM may show each process its own GPU only.
        return (
            torch.device("cuda", local_rank if count > 1 else 0) if count else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--devices {name}: not a device; give cpu or cuda:NUMBER") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--devices {name}: this machine has {count} GPUs; give cpu or another")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--devices {name}: only cpu and cuda are supported")
    return device
