"""The loop knows no method: one written from `msn.methods.base` alone has all that MSN has."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msn.cli.main import main
from msn.runtime import checkpoint
from msn.train.pretraining import pretrain
from tests.support.experiments import tiny_config, write_tiny
from tests.support.processes import run_on
from tests.support.runs import ROOT, assert_same
from tests.support.toy import Toy

pytestmark = pytest.mark.processes

SETTINGS = {
    "logging__checkpoint_freq_itr": 5,
    "logging__probe": {"every": 1, "k": 5, "max_images": 100},
    "meta__encoder": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
}


def start(config: Path, processes: int) -> subprocess.Popen[str]:
    """The toy as a process of its own, or as several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "tests.support.toy"]
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [*command, str(config)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill_at(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        logged = re.search(r"step (\d+)/", line)
        if logged and int(logged[1]) >= step:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def test_it_trains_logs_and_is_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(tiny_config(tmp_path, **SETTINGS), torch.device("cpu"), Toy)
    with (tmp_path / "tiny_r0.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "variance"
    assert not {"momentum", "msn"} & rows[0].keys()
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert "k-NN probe" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "tiny-latest.pth.tar")
    assert {"target_encoder", "opt", "step"} <= state.keys()
    assert "prototypes" not in state
    # What evaluates a run of MSN evaluates this one.
    weights = str(tmp_path / "tiny-latest.pth.tar")
    assert (
        main(["evaluate", "knn", "--weights", weights, "data.source=digits", "--image-size=8"]) == 0
    )


def unbroken(folder: Path) -> None:
    pretrain(tiny_config(folder, **SETTINGS), torch.device("cpu"), Toy)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_it_ends_as_if_unbroken(tmp_path: Path, processes: int) -> None:
    config = write_tiny(tmp_path / "toy.yaml", tmp_path / "run", **SETTINGS)
    kill_at(start(config, processes), 17)
    done = checkpoint.load(tmp_path / "run/tiny-latest.pth.tar")["step"]
    assert 0 < done < 40 // processes
    assert start(config, processes).wait(timeout=120) == 0
    run_on(processes, unbroken, tmp_path / "unbroken")
    broken, whole = (
        checkpoint.load(tmp_path / name / "tiny-latest.pth.tar") for name in ("run", "unbroken")
    )
    assert_same(broken, whole)
