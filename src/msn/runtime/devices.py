"""Choose the device that a command computes on, and its arithmetic."""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from msn.runtime.errors import UserError
from msn.runtime.wording import counted

SMALL = 10**8  # products: some 10 ms of one thread


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Choose the device that a name stands for: cpu, cuda, cuda:NUMBER or auto.

    "cuda" is this process's GPU of the machine; "auto" is that too, or the CPU if there is no GPU.

    Raises:
        UserError: there is no such device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cuda":
        # SLURM may show each process its own GPU only.
        name = f"cuda:{local_rank if count > 1 else 0}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--devices {name}: not a device; give cpu or cuda:NUMBER") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--devices {name}: this machine shows {count} GPUs; give cpu or another")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--devices {name}: only cpu and cuda are supported")
    return device


def described(device: torch.device) -> str:
    """Name a device and what it is: `cuda:0 (NVIDIA H200)`, `cpu (Intel Xeon, 2 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        words = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        found = re.search(r"^model name\s*:\s*(.+)$", words, re.MULTILINE)
        model = found[1] if found else model
    return f"{device} ({model}, {counted(torch.get_num_threads(), 'thread')})"


def require_compiler(device: torch.device) -> None:
    """Refuse `torch.compile` where it would fail at the first step.

    Raises:
        UserError: there is no C++ compiler or, for a GPU, no Triton.
    """
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"meta.compile: true needs a C++ compiler, and {' or '.join(names)} is not there;"
            " install g++, name another in the environment variable CXX, or set it to false"
        )
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise UserError(
            "meta.compile: true needs Triton on a GPU, which is not installed; pip install triton,"
            " or set it to false"
        )


@contextlib.contextmanager
def threads_for(products: int) -> Iterator[None]:
    """Compute with one thread where matrices are small, else with as many as there are.

    Threads that share a small product mostly wait for each other, which they do at full speed: on
    two busy cores that took four times the processor time, and longer.

    Args:
        products: numbers that the largest matrix product multiplies.
    """
    if products > SMALL:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def use_bf16(precision: str, device: torch.device) -> bool:
    """Tell whether to autocast: if asked to, or on `auto` where hardware has native bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
