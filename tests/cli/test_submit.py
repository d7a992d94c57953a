"""Jobs that run here, without SLURM; those of a cluster are in tests/cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msn.cli.main import main
from tests.runtime.test_run import write_config
from tests.support.labelled import pretrained, values, write
from tests.support.runs import ROOT
from tests.train.test_pretrain import latest


def run_here(config: Path, logs: Path, *options: str) -> None:
    """As a job of two processes, to its end."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "main_distributed.py"), "--fname", str(config),
         "--folder", str(logs), "--local", "--tasks-per-node", "2", *options],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180, check=False,
    )  # fmt: skip
    said = "\n".join(path.read_text() for path in logs.glob("*.out"))
    assert result.returncode == 0, result.stderr + said


def test_a_pre_training(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", optimization__epochs=1)
    run_here(config, tmp_path / "logs")
    assert latest(tmp_path / "run")["world_size"] == 2


@pytest.mark.parametrize(
    ("options", "classifier"),
    [
        (["--linear-eval"], "lr=6.4 blocks=1"),
        (["--finetune", "optimization.warmup=0"], "finetune"),
    ],
)
def test_an_evaluation(options: list[str], classifier: str, tmp_path: Path) -> None:
    sections = values(pretrained(tmp_path), tmp_path / "run")
    run_here(write(tmp_path / "evaluation.yaml", sections), tmp_path / "logs", *options)
    result = json.loads((tmp_path / "run" / "run-result.json").read_text())
    assert list(result["last"]) == [classifier]


def test_one_kind_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fname", "x", "--folder", str(tmp_path), "--finetune", "--linear-eval"]
    assert main(["submit", *words]) == 2
    assert "--linear-eval: not allowed with argument --finetune" in capsys.readouterr().err
