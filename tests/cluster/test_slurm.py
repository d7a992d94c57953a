"""Jobs on a real SLURM of two nodes: submitted, preempted, out of time, a node lost.

MSN_REQUIRE_CLUSTER=1 makes it an error if the cluster cannot be started; otherwise these are
skipped, with the reason.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msn.runtime import checkpoint
from tests.runtime.test_run import losses, write_config
from tests.support.runs import ROOT, assert_same
from tests.support.slurm import Cluster, why_not
from tests.train.test_pretraining import latest

MISSING = why_not()
if MISSING and os.environ.get("MSN_REQUIRE_CLUSTER"):
    raise RuntimeError(f"MSN_REQUIRE_CLUSTER is set, but the cluster {MISSING}")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(MISSING is not None, reason=f"the cluster {MISSING}"),
]

LONG = {"optimization__epochs": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        cluster = Cluster(Path(name))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def submit(cluster: Cluster, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = write_config(folder, folder / "run", **LONG)
    command = [sys.executable, str(ROOT / "main_distributed.py"), "--fname", str(config)]
    logs = ["--folder", str(folder / "logs")]
    return subprocess.run(
        [*command, *logs, *arguments],
        capture_output=True, text=True, env=cluster.environment, timeout=120, check=False,
    )  # fmt: skip


def submitted(cluster: Cluster, folder: Path, *arguments: str) -> int:
    """The number of a job on both nodes."""
    options = ["--partition", "debug", "--nodes", "2", "--tasks-per-node", "1", *arguments]
    result = submit(cluster, folder, *options)
    assert result.returncode == 0, result.stderr
    found = re.match(r"job (\d+): output in", result.stdout)
    assert found, result.stdout
    return int(found[1])


def output(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "logs").glob("*.out")))


def wait_for_state(cluster: Cluster, job: int, state: str, folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (now := cluster.job(job)).get("JobState") != state:
        failed = now.get("JobState") in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        if failed or time.monotonic() > deadline:
            raise AssertionError(f"{now}\n{output(folder)[-6000:]}")
        if now.get("JobState") == "PENDING" and now.get("Reason") == "BeginTime":
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(0.3)


def wait_for_step(folder: Path, step: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    table = folder / "run" / "tiny_r0.csv"
    while not table.exists() or not losses(folder / "run") or losses(folder / "run")[-1][0] < step:
        assert time.monotonic() < deadline, output(folder)[-6000:]
        time.sleep(0.2)


def task(job: int, rank: int) -> int:
    """The process of a rank."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = "submitit.core._submit" in (folder / "cmdline").read_text()
            if ours and wanted <= set((folder / "environ").read_text().split("\0")):
                return int(folder.name)
    raise AssertionError(f"no task {rank} of job {job}")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Halt a rank, and with it the run, so that what takes SLURM long finds it still at work."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_whatever_happens_to_a_job_it_ends_as_if_unbroken(cluster: Cluster, tmp_path: Path) -> None:
    """Preempted by SLURM, then out of time, then without a node."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    first = submitted(cluster, unbroken, "--time", "10")
    wait_for_state(cluster, first, "COMPLETED", unbroken, 200)
    assert latest(unbroken / "run")["world_size"] == 2

    job = submitted(cluster, broken, "--time", "10", "--signal-delay", "20")
    wait_for_step(broken, 12)
    cluster.run("scontrol", "requeue", str(job))
    wait_for_state(cluster, job, "PENDING", broken, 60)
    wait_for_state(cluster, job, "RUNNING", broken, 60)
    wait_for_step(broken, int(losses(broken / "run")[-1][0]) + 16)
    second = task(job, 1)
    with frozen(second):
        # In whole minutes: the next one that leaves time before the signal.
        hours, minutes, seconds = map(int, cluster.job(job)["RunTime"].split(":"))
        limit = str(60 * hours + minutes + (1 if seconds < 35 else 2))
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
        wait_for_state(cluster, job, "PENDING", broken, 130)  # its signals wake the rank
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    wait_for_state(cluster, job, "RUNNING", broken, 60)
    wait_for_step(broken, int(losses(broken / "run")[-1][0]) + 16)
    second = task(job, 1)
    with frozen(second):
        cluster.kill_node("n2")
        wait_for_state(cluster, job, "PENDING", broken, 90)
        # The node is gone, with the rank and the step that watches it.
        step = int(Path(f"/proc/{second}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for pid in (step, second):
            os.kill(pid, signal.SIGKILL)
    cluster.start_node("n2")
    wait_for_state(cluster, job, "COMPLETED", broken, 200)

    assert int(cluster.job(job)["Restarts"]) >= 3
    said = output(broken)
    assert said.count("resumed from") >= 3, said
    assert_same(latest(broken / "run"), latest(unbroken / "run"))
    assert losses(broken / "run") == losses(unbroken / "run")


def test_the_quickstart_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    """The command of the README, over in seconds."""
    command = [
        sys.executable, str(ROOT / "main_distributed.py"),
        "--fname", str(ROOT / "configs/quickstart.yaml"), "--folder", str(tmp_path / "logs"),
        "--partition", "debug", "--nodes", "2", "--tasks-per-node", "1", "--time", "10",
        f"logging.folder={tmp_path / 'run'}", "optimization.epochs=1", "optimization.warmup=0",
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, env=cluster.environment, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    job = int(result.stdout.split()[1].rstrip(":"))
    wait_for_state(cluster, job, "COMPLETED", tmp_path, 200)
    assert "finished: 1 epoch, 20 steps" in output(tmp_path)
    state = checkpoint.load(tmp_path / "run" / "quickstart-latest.pth.tar")
    assert (state["world_size"], state["batch_size"]) == (2, 32)


def test_srun_starts_the_same_script(cluster: Cluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", optimization__epochs=1)
    said = cluster.run(
        "srun", "--nodes=2", "--ntasks=2", sys.executable, str(ROOT / "main.py"),
        "--fname", str(config),
    )  # fmt: skip
    assert "finished: 1 epoch" in said
    assert latest(tmp_path / "run")["world_size"] == 2


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        (["--partition", "gpu"], None, "--partition gpu: unknown; this cluster has debug"),
        (["--partition", "debug", "--constraint", "warp"], None, "sbatch refuses the job"),
        (["--partition", "debug"], "/usr/bin:/bin", ""),
    ],
)
def test_a_wrong_submission_is_one_line(
    cluster: Cluster, tmp_path: Path, arguments: list[str], path: str | None, message: str
) -> None:
    if path is not None:
        cluster = Cluster(cluster.folder)
        cluster.environment["PATH"] = str(tmp_path)
        message = "try the job here with --local"
    result = submit(cluster, tmp_path, *arguments)
    assert result.returncode == 2
    # What sbatch itself says may come before.
    *before, own = result.stderr.strip().splitlines()
    assert message in own
    assert all(line.startswith("sbatch: ") for line in before)
