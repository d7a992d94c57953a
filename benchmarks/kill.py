"""Kill a run of two processes again and again; it must end with the bits of the unbroken one.

    python benchmarks/kill.py [--whole 20] [--rank 10] [--writing 10] [--seed 0]

Three studies on the digits, on the CPU: the whole run is killed at random moments, one of its
processes is, or the whole while a checkpoint is being written. After each kill the same command
goes on, and when it has ended all weights, moments and logged losses are compared. The run is
short, but saves twenty times.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from msn.runtime import checkpoint

ROOT = Path(__file__).parents[1]
TAG = "quickstart"
OVERRIDES = [
    "meta.encoder.depth=2",
    "optimization.epochs=3",
    "optimization.warmup=1",
    "logging.checkpoint_freq_itr=3",
    "logging.probe=null",
    "logging.tensorboard=false",
    "logging.log_freq=1",
    "logging.keep=2",
]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "main.py"), "--fname", "configs/quickstart.yaml"]
    return subprocess.Popen(
        [*command, "--devices", "cpu", "cpu", f"logging.folder={folder}", *OVERRIDES],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(timeout=600)


def outcome(folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    state = checkpoint.load(checkpoint.latest_path(folder, TAG))
    with (folder / f"{TAG}_r0.csv").open(encoding="utf-8") as file:
        return state, [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def same(a: Any, b: Any) -> bool:
    """Bit for bit, but for the config, which names the folder."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "config")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def begun(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the run to take its folder: what went before is imports."""
    while process.poll() is None and not checkpoint.lock_path(folder, TAG).exists():
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes], how: str, folder: Path, seconds: float) -> None:
    """Kill the run in one of three ways, at a random moment of its first `seconds` of work."""
    begun(process, folder)
    time.sleep(random.random() * seconds)
    if how == "writing":
        temporary = half_written(folder)
        while process.poll() is None and not temporary.exists():
            time.sleep(0.0002)
        time.sleep(random.random() * 0.003)
    if process.poll() is not None:
        return
    if how == "rank":
        task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        ranks = task.read_text().split()
        if ranks:
            os.kill(int(random.choice(ranks)), signal.SIGKILL)
        return
    process.kill()


def half_written(folder: Path) -> Path:
    """What a save is written to before it takes its name."""
    latest = checkpoint.latest_path(folder, TAG)
    return latest.with_name(f"{latest.name}.tmp")


def study(how: str, kills: int, unbroken: Path, seconds: float) -> None:
    """Runs that are killed until there were so many kills; each has to end like the unbroken."""
    expected, done, runs, halves, worst = outcome(unbroken), 0, 0, 0, 0.0
    while done < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, runs = Path(name) / "run", runs + 1
            for _ in range(min(4, kills - done)):
                process = start(folder)
                kill(process, how, folder, seconds)
                begin = time.monotonic()
                if ended(process) == 0:
                    break  # it was faster than the kill
                worst, done = max(worst, time.monotonic() - begin), done + 1
                halves += half_written(folder).exists()
            assert ended(start(folder)) == 0, "a killed run did not go on"
            assert not list(folder.glob("*.damaged")), "a truncated file was found"
            assert same(outcome(folder), expected), "a killed run ended otherwise"
    print(
        f"{how}: {done} kills in {runs} runs, all bit-identical to the unbroken one;"
        f" {halves} kills left a half-written file;"
        f" at most {worst:.1f} s from a kill until all processes had ended",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for how, kills in (("whole", 20), ("rank", 10), ("writing", 10)):
        parser.add_argument(f"--{how}", type=int, default=kills, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        unbroken = Path(name) / "unbroken"
        process = start(unbroken)
        begun(process, unbroken)
        begin = time.monotonic()
        assert ended(process) == 0
        seconds = time.monotonic() - begin
        for how in ("whole", "rank", "writing"):
            if kills := getattr(options, how):
                study(how, kills, unbroken, seconds)


if __name__ == "__main__":
    main()
