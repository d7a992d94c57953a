"""How the benchmarks measure: turns, memory, a device's speed; and what machine it was."""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Step = Callable[[int], object]


def machine(device: torch.device) -> str:
    """The processor or GPU that computes, and torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step, number: int, device: torch.device) -> float:
    """Of one step, with what the device still does of it; of one thread its processor time."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait_for(device)
    start = clock()
    step(number)
    wait_for(device)
    return clock() - start


def take_turns(
    steps: Mapping[str, Step], rounds: int, device: torch.device, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds that each of `steps` takes, for every round after the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        row = {name: seconds(step, number, device) for name, step in steps.items()}
        title = "warm-up" if number < warm_up else f"round {number - warm_up + 1}"
        print(f"{title}: " + ", ".join(f"{name} {s:.3f} s" for name, s in row.items()), flush=True)
        if number >= warm_up:
            for name, value in row.items():
                times[name].append(value)
    return times


def matmul_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of a large matrix product: the peak that the device really reaches."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda _: a @ b, turn, device) for turn in range(20))
    return 2 * size**3 / best


class PeakMemory:
    """Bytes above what was held when this was made; of the device, or of this process.

    On a CPU it is the resident high-water mark, which never falls: make one per process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident()
            clear = Path("/proc/self/clear_refs")
            if clear.exists():
                clear.write_text("5")  # the high-water mark starts from here

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return _high_water() - self._before


def in_fresh_process(arguments: list[str]) -> Any:
    """What a run of the same script with these arguments prints as its last line, JSON."""
    command = [sys.executable, sys.argv[0], *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def write_results(options: argparse.Namespace, name: str, results: Mapping[str, Any]) -> None:
    """Put the results of one benchmark into the JSON file `options.out`, beside those of others."""
    path: Path = options.out
    everything = json.loads(path.read_text()) if path.exists() else {}
    about = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device(options.device))}
    everything[name] = {**about, **results, "command": sys.argv[1:]}
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _high_water() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
