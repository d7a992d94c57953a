"""Runs of several processes: the same as one, and well ended whatever happens to them."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msn.cli.main import main
from msn.runtime import checkpoint, spawn
from tests.support.experiments import write_tiny
from tests.support.runs import ROOT, assert_same
from tests.train.test_pretraining import latest

pytestmark = pytest.mark.processes

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SHARED = {
    "criterion__batch_size": None,
    "criterion__global_batch_size": 32,
    "data__mask_scope": "global",
    "logging__checkpoint_freq_itr": 7,
    "optimization__epochs": 2,
}
LOSSES = ("step", "loss", "msn", "me_max", "ent", "np", "max_t")


def write_config(folder: Path, run: Path, **changes: object) -> Path:
    return write_tiny(folder / "tiny.yaml", run, **{**SHARED, **changes})


def spawned(config: Path, *overrides: str) -> subprocess.Popen[str]:
    devices = ["--devices", "cpu", "cpu"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--fname", str(config), *devices, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finished(process: subprocess.Popen[str], timeout: float = 180) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends by itself in time."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        logged = re.search(r"step (\d+)/", line)
        if logged and int(logged[1]) >= step:
            return
    raise AssertionError("ended before")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The ranks of a spawned run, in order."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(pid) for pid in task.read_text().split())


def losses(folder: Path) -> list[list[float]]:
    with (folder / "tiny_r0.csv").open(encoding="utf-8") as file:
        return [[float(row[name]) for name in LOSSES] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("two")
    code, _, err = finished(spawned(write_config(folder, folder / "run")))
    assert (code, err) == (0, "")
    return folder / "run"


def test_two_processes_log_what_one_does(two: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", optimization__epochs=1)
    assert main(["pretrain", "--fname", str(config), "optimization.epochs=2"]) == 0
    alone = losses(tmp_path / "run")
    assert len(alone) == 20
    # Later on, rounding grows through weights whose gradient is nothing but that.
    for one, both in zip(alone[:3], losses(two)[:3], strict=True):
        assert both == pytest.approx(one, abs=1e-5)
    for one, both in zip(alone, losses(two), strict=True):
        assert both[1] == pytest.approx(one[1], abs=1e-3)


def test_two_processes_are_profiled_as_one_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run")
    code, out, err = finished(spawned(config, "--profile", "4"))
    assert code == 0, err
    assert re.findall(r"^(\d+) steps of (\d+) images", out, re.MULTILINE) == [("4", "32")]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tiny-trace.json"]


def test_only_rank_0_writes(two: Path) -> None:
    assert {path.name for path in two.iterdir()} == {
        "tiny-latest.pth.tar",
        "tiny-ep2.pth.tar",
        "tiny-config.yaml",
        "tiny_r0.csv",
        "tiny-probe.csv",
    }
    assert (latest(two)["world_size"], latest(two)["batch_size"]) == (2, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_in_turn_two_processes_end_as_if_unbroken(two: Path, tmp_path: Path) -> None:
    """One rank, then the whole, then a signal that saves."""
    config = write_config(tmp_path, tmp_path / "run")
    process = spawned(config)
    wait_for_step(process, 12)
    os.kill(children(process)[1], signal.SIGKILL)
    code, _, err = finished(process, timeout=60)
    assert code == 128 + signal.SIGKILL
    assert err.splitlines()[-1] == "error: rank 1 was killed by SIGKILL"
    process = spawned(config)
    wait_for_step(process, 40)
    ranks = children(process)
    process.kill()
    process.communicate(timeout=60)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in ranks), "left behind"
    process = spawned(config, "logging.async_save=true")
    wait_for_step(process, 52)
    process.send_signal(signal.SIGUSR2)
    code, _, err = finished(process, timeout=60)
    assert code == 130
    assert re.fullmatch(
        r"stopped after step \d+ of 80 and saved; the same command resumes from there\n", err
    )
    done = int(err.split()[3])
    assert latest(tmp_path / "run")["step"] == done >= 52
    code, out, _ = finished(spawned(config))
    assert code == 0
    assert f"resumed from {tmp_path / 'run' / 'tiny-latest.pth.tar'}: {done} of 80" in out
    assert_same(latest(tmp_path / "run"), latest(two))
    assert losses(tmp_path / "run") == losses(two)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_to_any_rank_stops_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And another number of processes with the same global batch goes on from there."""
    config = write_config(tmp_path, tmp_path / "run")
    process = spawned(config)
    wait_for_step(process, 9)
    os.kill(children(process)[1], signal.SIGTERM)
    code, _, err = finished(process, timeout=60)
    assert code == 130, err
    assert "stopped after step" in err
    # A second run in the folder would be refused while the first is there; see test_lock.
    command = ["pretrain", "--fname", str(config), "--devices", "cpu"]
    assert main([*command, "criterion.global_batch_size=48"]) == 2
    refusal = "global batch of 32 = 16 x 2 processes, this run has 48 = 48 x 1"
    assert refusal in capsys.readouterr().err
    assert main([*command, "optimization.epochs=1"]) == 0
    assert "resumed from" in capsys.readouterr().out
    assert latest(tmp_path / "run")["world_size"] == 1
    # Another global batch is taken if asked for, at the same share of the epochs.
    larger = ["criterion.global_batch_size=64", "meta.allow_batch_change=true"]
    assert main([*command, *larger]) == 0
    assert "20 of 40 steps done" in capsys.readouterr().out
    assert (latest(tmp_path / "run")["step"], latest(tmp_path / "run")["epoch"]) == (40, 2)


def member(rank: int, script: str) -> spawn.Member:
    """A process under the front, once it has said that it is ready."""
    words = [sys.executable, "-S", "-c", f"import signal, sys, time; {script}"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return spawn.Member(rank, process)


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep"
SAVES = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); print(flush=True); time.sleep"


@pytest.mark.parametrize(
    ("scripts", "asked_to", "code", "said"),
    [
        # A signal that is not heeded; a process that ends well, and another that does not.
        ((f"{DEAF}(60)", f"{DEAF}(60)"), True, 137, "error: rank 0 did not end in time and was"),
        ((f"{DEAF}(0)", f"{DEAF}(60)"), False, 137, "error: rank 1 did not end in time and was"),
        # All are stopped, and awake to save.
        ((f"{SAVES}(60)", f"{SAVES}(60)"), True, 130, ""),
    ],
)
def test_the_front_always_ends_its_processes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scripts: tuple[str, str],
    asked_to: bool,
    code: int,
    said: str,
) -> None:
    grace = 0.5 if code == 137 else 20.0
    monkeypatch.setattr(spawn, "STOP_GRACE", grace)
    monkeypatch.setattr(spawn, "GRACE", grace)
    members = [member(rank, script) for rank, script in enumerate(scripts)]
    begin = time.monotonic()
    with spawn._signals_passed_to(members) as asked:
        if asked_to:
            for each in members:
                each.process.send_signal(signal.SIGSTOP)
            signal.raise_signal(signal.SIGTERM)
        first = spawn._first_to_fail(members, asked)
        assert first is not None
        spawn._end(members, asked)
    assert time.monotonic() - begin < 10
    assert all(each.process.poll() is not None for each in members)
    assert spawn._last_words(first) == code
    assert capsys.readouterr().err.startswith(said)


def test_torchrun_and_its_last_words(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", optimization__epochs=1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    rendezvous = ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run = [*torchrun, *rendezvous[1:], str(ROOT / "main.py"), "--fname", str(config)]
    result = subprocess.run(
        run, capture_output=True, text=True, env=ENVIRONMENT, timeout=180, check=False
    )
    assert result.returncode == 0, result.stderr
    assert latest(tmp_path / "run")["world_size"] == 2
    broken = [*run, "criterion.num_proto=9"]
    result = subprocess.run(
        broken, capture_output=True, text=True, env=ENVIRONMENT, timeout=180, check=False
    )
    assert result.returncode != 0
    assert "'prototypes' is of another model" in result.stderr[-2000:]


def test_newest_saves_are_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", logging__keep=3, optimization__epochs=1)
    assert main(["pretrain", "--fname", str(config)]) == 0
    names = {path.name for path in (tmp_path / "run").glob("*.pth.tar")}
    assert names == {"tiny-latest.pth.tar", "tiny-step35.pth.tar", "tiny-step28.pth.tar",
                     "tiny-ep1.pth.tar"}  # fmt: skip
    found = checkpoint.load(tmp_path / "run" / "tiny-step35.pth.tar")
    assert found["step"] == 35
