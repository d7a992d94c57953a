"""A SLURM cluster of two nodes, n1 and n2, on this machine: real daemons, in a folder of their own.

Needs root, and Debian's slurm-wlm and munge.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
NODES = ("n1", "n2")

CONFIG = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
FirstJobId={ctld_port}
SlurmdTimeout=8
KillWait=10
InactiveLimit=0
MinJobAge=3600
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port} CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def why_not() -> str | None:
    """What is missing for such a cluster, None if it can be started here."""
    missing = [tool for tool in TOOLS if not find(tool)]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "needs root, to start SLURM's daemons"
    return None


def find(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_ports(*names: str) -> dict[str, int]:
    """A port for each name that nobody listens on."""
    with contextlib.ExitStack() as held:
        probes = {name: held.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}


class Cluster:
    """The daemons. `environment` makes SLURM's commands, and those of jobs, talk to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        # Several such clusters fit on one machine. Jobs derive the port that they meet at from
        # their number, so those are the cluster's own too.
        ports = free_ports("ctld_port", *(f"{node}_port" for node in NODES))
        text = CONFIG.format(host=socket.gethostname(), folder=folder, **ports)
        (folder / "slurm.conf").write_text(text)
        self._name_nodes()
        munge = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "log-file": "munged.log",
            "pid-file": "munged.pid",
            "seed-file": "munged.seed",
        }
        paths = [f"--{option}={folder / name}" for option, name in munge.items()]
        self._launch("munged", "--foreground", "--force", *paths)
        self._wait(lambda: (folder / "munge.socket").exists(), "munged")
        self._launch("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], "the nodes")

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._launch("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """As if the machine's daemon died."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def stop(self) -> None:
        subprocess.run(
            [find("scancel") or "scancel", "--user=root", "--signal=KILL"],
            env=self.environment, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, tool: str, *arguments: str) -> str:
        """stdout of one of SLURM's commands; empty if it fails."""
        command = [find(tool) or tool, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        ).stdout

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self.run("scontrol", "show", "job", str(number), "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _launch(self, tool: str, *arguments: str, name: str | None = None) -> None:
        log = (self.folder / f"{name or tool}.stderr").open("ab")
        self._daemons[name or tool] = subprocess.Popen(
            [find(tool) or tool, *arguments],
            env=self.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _wait(self, ready: object, what: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        assert callable(ready)
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                    for path in [*self.folder.glob("*.log"), *self.folder.glob("*.stderr")]
                )
                raise AssertionError(f"{what} did not come up\n{logs}")
            time.sleep(0.2)

    @staticmethod
    def _name_nodes() -> None:
        """Give the nodes an address, which rank 0 is met at."""
        hosts = Path("/etc/hosts")
        known = hosts.read_text().split()
        unknown = [node for node in NODES if node not in known]
        if unknown:
            with hosts.open("a") as file:
                file.write(f"127.0.0.1 {' '.join(unknown)}\n")
