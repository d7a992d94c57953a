"""Jobs that run here, without SLURM; those of a cluster are in tests/cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msn.cli.main import main
from tests.runtime.test_run import write_config
from tests.support.labeled import pretrained, values, write
from tests.support.runs import ROOT
from tests.train.test_pretraining import latest

pytestmark = pytest.mark.processes


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


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of a cluster that does nothing but keep the script that it is given."""
    commands = {
        "sinfo": "printf 'cpu* 8 (null)\\ngpu 64+ gpu:a100:8\\nlong 32 gpu:4\\n'",
        "sbatch": f"cp \"$1\" {tmp_path}/script; echo 'Submitted batch job 12'",
        "srun": "exit 1",
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_config(tmp_path, tmp_path / "run")
    return tmp_path


def submitted(cluster: Path, *options: str) -> list[str]:
    """The lines of the script of a job."""
    config = write_config(cluster, cluster / "run")
    words = ["--fname", str(config), "--folder", str(cluster / "logs"), *options]
    assert main(["submit", *words]) == 0
    return (cluster / "script").read_text().splitlines()


def test_what_sbatch_is_asked_for(cluster: Path) -> None:
    lines = submitted(
        cluster,
        *("--partition", "gpu,long", "--tasks-per-node", "4", "--reservation", "mine"),
        *("--exclude", "n[1-3]", "--nodelist", "n4", "--comment", "a b; c", "--qos", "high"),
        *("--account", "us", "--constraint", "a100|h100", "--memory", "20"),
        *("--setup", "module load cuda", "--setup", "export A='b c'"),
        *("--slurm", "mail-type=END", "--slurm", "exclusive", "--slurm", "gres=a=b"),
    )
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {
        *("partition=gpu,long", "gpus-per-node=4", "cpus-per-task=8", "ntasks-per-node=4"),
        *("reservation=mine", "exclude='n[1-3]'", "nodelist=n4", "comment='a b; c'", "qos=high"),
        *("account=us", "constraint='a100|h100'", "mem=20GB", "mail-type=END", "exclusive"),
        *("gres=a=b", "nodes=1", "time=4320"),
    }
    setup = lines.index("module load cuda")
    assert lines[setup + 1] == "export A='b c'"
    assert any(line.startswith("srun ") for line in lines[setup:])


def test_the_default_partition(cluster: Path) -> None:
    asked = [line for line in submitted(cluster) if line.startswith("#SBATCH")]
    assert "#SBATCH --cpus-per-task=8" in asked
    assert not any("--partition" in line for line in asked)


def test_what_sbatch_is_not_asked_for(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(cluster, cluster / "run")
    for option, value, message in (
        ("--partition", "gpu,shrot", "--partition shrot: unknown; this cluster has cpu, gpu, long"),
        ("--partition", "gpu,", "--partition : unknown; this cluster has cpu, gpu, long"),
        ("--slurm", "=END", "--slurm =END: must be KEY=VALUE"),
        ("--slurm", "mail type=END", "--slurm mail type=END: must be KEY=VALUE"),
        ("--slurm", "mem=3", "--slurm mem=3: must be given as --memory"),
        ("--slurm", "partition=gpu", "--slurm partition=gpu: must be given as --partition"),
        ("--comment", "a\n#SBATCH --wrap", "--comment 'a\\n#SBATCH --wrap': must be one line"),
        ("--setup", "a\nb", "--setup 'a\\nb': must be one line"),
    ):
        words = ["--fname", str(config), "--folder", str(cluster / "logs"), option, value]
        assert main(["submit", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}"), error
        assert error.count("\n") == 1
    assert not (cluster / "script").exists()
