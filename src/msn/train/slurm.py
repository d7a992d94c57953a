"""Submit a run as a SLURM job, which saves before its time is over and queues itself again."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from msn.config.kinds import ConfigFile
from msn.runtime import log
from msn.runtime.devices import choose_device
from msn.runtime.distributed import find_world, joined
from msn.runtime.errors import Interrupted, PeerLost, RunError, UserError
from msn.runtime.identity import identity
from msn.runtime.log import logger

START_TIMEOUT = 600.0  # seconds that the tasks of a job may take to start
VERDICT_TIMEOUT = 1800.0  # seconds that SLURM may take to notice that a node is gone
MAX_TIMEOUTS = 10_000  # of one job; submitit stops after three by itself

File = TypeVar("File", bound=ConfigFile)


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for; None leaves it to the cluster, or to what its nodes have.

    Attributes:
        partition: or several, with commas between them; empty is the default of the cluster.
        minutes: time limit; the run is saved and queued again before it is over.
        memory: GB for each node.
        signal_delay: seconds before the time limit at which the run is asked to save.
        setup: commands that the first node runs before all else.
        others: further options of sbatch, handed on as they are; True for one without a value.
        local: run on this machine, without SLURM.
    """

    folder: Path
    partition: str
    nodes: int
    tasks_per_node: int
    minutes: int
    memory: float | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    signal_delay: int = 120
    setup: Sequence[str] = ()
    others: Mapping[str, str | bool] = field(default_factory=dict)
    local: bool = False


class Job(Generic[File]):
    """What each task of a job runs. submitit pickles it, and calls `checkpoint` to queue it again.

    Args:
        work: of one process.
        config: resolved, so that a job that waits is not changed by an edit of the file.
    """

    def __init__(self, work: Callable[[File, torch.device], object], config: File) -> None:
        self.work, self.config = work, config

    def __call__(self) -> None:
        """Run as one of the processes of the job.

        Raises:
            UserError: as the work does.
        """
        import submitit

        log.show()
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        world = find_world()
        device = choose_device("auto", world.local_rank)
        settings = identity(self.config.model_dump(mode="json"))
        try:
            with joined(
                world,
                device,
                identity=settings,
                timeout=START_TIMEOUT,
                patience=self.config.meta.collective_timeout,
            ):
                self.work(self.config, device)
        except Interrupted as stopped:
            logger.info(stopped)
            if stopped.number == signal.SIGUSR2:
                _queue_again(world.rank)
            raise
        except PeerLost as lost:
            # Its own error ends the job, by srun's --kill-on-bad-exit. A lost node does not, until
            # SLURM notices and queues the job again: which it would not if this task failed first.
            logger.error(f"{lost}; waiting for SLURM to end this task")
            time.sleep(VERDICT_TIMEOUT)
            raise

    def checkpoint(self) -> Any:
        """Give submitit this same job to queue again, which then resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _queue_again(rank: int) -> None:
    """Hand the signal to submitit, whose handler on rank 0 requeues the saved job.

    A preemption by SLURM itself (SIGTERM) needs none of this: it queues the job again.
    """
    signal.raise_signal(signal.SIGUSR2)
    if rank:  # a task that ended now would take rank 0 down before it has requeued
        time.sleep(60)


def submit(job: Job[Any], resources: Resources) -> Any:
    """Submit a job and return submitit's handle of it.

    Raises:
        UserError: SLURM is not there, or refuses.
    """
    import submitit

    shared = {
        "timeout_min": resources.minutes,
        "tasks_per_node": resources.tasks_per_node,
        "nodes": resources.nodes,
        "name": "msn",
        "stderr_to_stdout": True,
    }
    if resources.local:
        if resources.nodes != 1:
            raise UserError(f"--nodes {resources.nodes}: --local is this machine only; give 1")
        executor = submitit.AutoExecutor(resources.folder, cluster="local")
        executor.update_parameters(**shared)
        return executor.submit(job)
    gpus, cpus = partition_sizes(resources.partition)
    per_node, tasks = resources.gpus_per_node, resources.tasks_per_node
    executor = submitit.AutoExecutor(
        resources.folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS
    )
    executor.update_parameters(
        **shared,
        cpus_per_task=resources.cpus_per_task or max(1, cpus // tasks),
        gpus_per_node=(tasks if gpus else 0) if per_node is None else per_node,
        mem_gb=resources.memory,
        slurm_partition=resources.partition or None,
        slurm_additional_parameters=dict(resources.others),
        slurm_setup=list(resources.setup),
        slurm_signal_delay_s=resources.signal_delay,
        # A task that fails takes the others with it, whatever the cluster's default is.
        slurm_srun_args=["--kill-on-bad-exit=1"],
    )
    try:
        return executor.submit(job)
    except submitit.core.utils.FailedJobError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("sbatch: error: ")
        raise UserError(f"sbatch refuses the job: {reason}; correct the options") from None


def partition_sizes(partition: str) -> tuple[bool, int]:
    """Tell whether nodes of the partitions have GPUs, and count the CPUs of the smallest.

    Args:
        partition: one, or several with commas between them; empty for the default one.

    Raises:
        UserError: there is no SLURM here, or no such partition.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "sbatch is not on this machine's PATH: submit from a login node of the cluster, try"
            " the job here with --local, or use main.py with --devices, or torchrun"
        )
    command = ["sinfo", "--noheader", "--format=%P %c %G"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RunError(f"sinfo fails ({result.stderr.strip()}); is SLURM's controller up?")
    rows = [line.split() for line in result.stdout.splitlines()]
    names = sorted({row[0].rstrip("*") for row in rows})
    default = [row[0].rstrip("*") for row in rows if row[0].endswith("*")]
    wanted = partition.split(",") if partition else default
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        what = f"{unknown[0]}: unknown" if wanted else "is missing, as there is no default"
        raise UserError(f"--partition {what}; this cluster has {', '.join(names)}")
    own = [row for row in rows if row[0].rstrip("*") in wanted]
    return any("gpu" in row[2] for row in own), min(int(row[1].rstrip("+")) for row in own)
