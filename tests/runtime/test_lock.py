"""One run in a folder at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from msn.cli.main import main
from msn.runtime.checkpoint import latest_path, lock_path
from msn.runtime.errors import UserError
from msn.runtime.lock import locked, require_shared
from tests.support.commands import start, text
from tests.support.experiments import write_tiny

pytestmark = pytest.mark.processes

HOLD = """
import sys, time
from pathlib import Path
from msn.runtime.lock import locked
with locked(Path(sys.argv[1]), job=sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextmanager
def held_by_another(path: Path, job: str = "", seconds: float = 60) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), job, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held_by_another(path) as pid:
        begin = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"another run .*process {pid} on .*logging\.folder"),
            locked(path, job=""),
        ):
            pass
        assert time.monotonic() - begin < 5
    with locked(path, job="") as own:  # the first was killed: nothing of it is left
        assert path.read_text() == own
    assert not path.exists()


def test_a_job_waits_for_its_own_former_life(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held_by_another(path, "SLURM job 7", seconds=2), locked(path, job="SLURM job 7"):
        pass
    with (
        held_by_another(path, "SLURM job 7"),
        pytest.raises(UserError, match="SLURM job 7"),
        locked(path, job="SLURM job 7", patience=1),
    ):
        pass


def test_a_folder_that_is_not_shared_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msn.runtime.lock.SHARED_WITHIN", 0.3)
    with locked(tmp_path / "run.lock", job="") as own:
        require_shared(tmp_path / "run.lock", own)
        with pytest.raises(UserError, match="is not shared between the machines"):
            require_shared(tmp_path / "run.lock", own + " elsewhere")
    with pytest.raises(UserError, match="is not shared between the machines"):
        require_shared(tmp_path / "run.lock", own)


def test_a_run_keeps_its_folder_from_the_start_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after the first save, whatever the run itself reads; not beyond a kill."""
    run, output = tmp_path / "run", tmp_path / "first"
    config = write_tiny(tmp_path / "tiny.yaml", run, data__num_workers=1)
    command = ["pretrain", "--fname", str(config)]
    first = start([*command, "optimization.epochs=100000"], output)
    saved = latest_path(run, "tiny")
    try:
        for there, saves in ((lambda: "epoch" in text(output, "out"), 0), (saved.exists, 1)):
            while first.is_alive() and not there():
                time.sleep(0.01)
            os.kill(first.pid or 0, signal.SIGSTOP)
            assert main([*command, "meta.seed=7"]) == 2, text(output)
            error = capsys.readouterr().err
            assert f"another run is writing to this folder (process {first.pid} on" in error
            assert saved.exists() == saves
            os.kill(first.pid or 0, signal.SIGCONT)
    finally:
        first.kill()
        first.join()
    with locked(lock_path(run, "tiny"), job=""):  # its worker, if still there, does not hold it
        pass
