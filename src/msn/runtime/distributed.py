"""Rank and world size from the environment, and how the processes find each other.

Rank, address and port come from one place: the variables that torchrun, submitit's
`TorchDistributedEnvironment` and `msn.runtime.spawn` set, or else those of an srun step. What is
partial, contradictory or does not come up in time is an error, never a run of its own.
"""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from msn.runtime.errors import PeerLost, RunError, UserError
from msn.runtime.identity import changes

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ROLL_CALL = 20.0  # seconds at most that processes which lose patience do so after one another
MAX_CLOCK_SKEW = 60.0  # seconds
FAREWELL = 2.0  # seconds that whoever serves the store stays, for the others to read why
_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "gloo", "nccl", "socket")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process among those of its machine.
        address, port: where rank 0 is met.
        serves: whether this process opens that port.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    serves: bool = True

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} on {socket.gethostname()}"

    def variables(self) -> dict[str, str]:
        """Give the environment variables that `find_world` reads this world from."""
        values = (self.rank, self.size, self.local_rank, self.address, self.port)
        return {name: str(value) for name, value in zip(VARIABLES, values, strict=True)}


def find_world(environment: Mapping[str, str] = os.environ) -> World:
    """Read the world that the environment describes; it is of one process if none is described.

    Raises:
        UserError: the description is partial or contradicts itself.
    """
    given = [name for name in VARIABLES if name in environment]
    if given:
        return _from_variables(environment, given)
    if "SLURM_STEP_ID" in environment:
        return _from_srun(environment)
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1":
        raise UserError(
            f"environment variable SLURM_NTASKS={tasks}, but this process was not started by srun:"
            " start it with srun, name several --devices, or unset SLURM_NTASKS"
        )
    return World()


def _from_variables(environment: Mapping[str, str], given: list[str]) -> World:
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise UserError(
            f"environment variables {', '.join(given)} are set, but not {', '.join(missing)}:"
            " start with torchrun, which sets all of them, or unset all for a single process"
        )
    numbers = {name: _number(environment, name) for name in VARIABLES if name != "MASTER_ADDR"}
    rank, size, local_rank = (numbers[name] for name in VARIABLES[:3])
    port = numbers["MASTER_PORT"]
    local_size = _number(environment, "LOCAL_WORLD_SIZE", default=size)
    if not 0 <= rank < size:
        raise UserError(f"environment: RANK={rank} is not below WORLD_SIZE={size}; correct either")
    if not 0 <= local_rank < local_size <= size:
        raise UserError(
            f"environment: LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_size} and"
            f" WORLD_SIZE={size} contradict each other; correct or unset them"
        )
    if not 0 < port < 2**16:
        raise UserError(f"environment: MASTER_PORT={port} is no port; give 1 to 65535")
    # torchrun's agent has opened the port already.
    serves = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return World(rank, size, local_rank, environment["MASTER_ADDR"], port, serves)


def _from_srun(environment: Mapping[str, str]) -> World:
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    if size == 1:
        return World()
    rank, local_rank = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"environment: SLURM_STEP_NODELIST={nodes} cannot be resolved ({error}); put scontrol"
            " on the PATH, or start with torchrun"
        ) from None
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    port = 20000 + (97 * job + step) % 40000
    return World(rank, size, local_rank, names[0], port, serves=rank == 0)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name}={text!r} is not a number") from None


@contextlib.contextmanager
def joined(
    world: World,
    device: torch.device,
    *,
    identity: dict[str, Any],
    timeout: float,
    patience: float,
    clock: Callable[[], float] = time.time,
) -> Iterator[None]:
    """Join the processes of a run, so that collectives work inside the block.

    Args:
        world: from `find_world`.
        device: of this process.
        identity: must be equal on all processes.
        timeout: seconds that the others may take to come.
        patience: seconds that they may let this process wait at work.
        clock: seconds since the epoch; about the same on all machines.

    Raises:
        UserError: the processes do not find each other or do not belong together.
        PeerLost: another process ended while this one was at work, or does not answer.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1:
        yield
        return
    store = _meet(world, identity, timeout, clock)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=patience),
    )
    try:
        yield
        dist.barrier()  # whoever serves the store leaves last
    except RuntimeError as error:
        text = str(error).lower()
        if not any(word in text for word in _LOST):
            raise
        if "timed out" in text or "timeout" in text:
            raise PeerLost(_unanswered(store, world, patience)) from None
        reason = str(error).splitlines()[0]
        raise PeerLost(f"{world} lost another process ({reason}); its own error says why") from None
    dist.destroy_process_group()


def _unanswered(store: Any, world: World, patience: float) -> str:
    """Compose the message that names the processes for which all others have waited in vain."""
    limit = min(ROLL_CALL, patience / 2)
    hall = PrefixStore("roll call", store)
    missing = list(range(world.size))

    def call() -> None:
        deadline = time.monotonic() + limit
        hall.set(str(world.rank), "")
        while missing and time.monotonic() < deadline:
            missing[:] = [rank for rank in missing if not hall.check([str(rank)])]
            time.sleep(0.05)

    # Where rank 0, which serves the store, is stopped itself, the store does not answer either.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit + 2.0)
    names = ", ".join(map(str, missing[:8])) if not thread.is_alive() else "0"
    return (
        f"{world}: rank {names or 'unknown'} did not answer for {patience:g} s; see whether it is"
        " stopped or stuck there, or raise meta.collective_timeout if it was at work"
    )


def _meet(
    world: World, identity: dict[str, Any], timeout: float, clock: Callable[[], float]
) -> Any:
    """Connect to the run's store, and wait until all processes are there and belong together."""
    place = f"{world.address}:{world.port}"
    listener = _listen(world) if world.serves else None
    if not listener:
        _wait_for_port(world, timeout)
    found: list[Any] = []

    def meet() -> None:
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                world.address,
                world.port,
                world.size,
                is_master=world.serves,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
                master_listen_fd=listener.detach() if listener else None,
            )
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            hall = PrefixStore(f"meet/{attempt}", store)
            _introduce(hall, world, identity, timeout)
            _compare_clocks(hall, world, clock, timeout)
            found.append(store)
        except (UserError, dist.DistError) as error:
            found.append(error)

    # Where another program listens on the port, the store waits for its answer for ever.
    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(3 * timeout)
    result = found[0] if found else f"no answer within {3 * timeout:g} s"
    if world.serves and isinstance(result, Exception):
        time.sleep(FAREWELL)
    if isinstance(result, UserError):
        raise result
    if isinstance(result, (str, dist.DistError)):
        reason = str(result).splitlines()[0]
        raise RunError(f"{world}: cannot meet the others at {place} ({reason})")
    return result


def _listen(world: World) -> socket.socket:
    """Open the port where rank 0 meets the other processes of the run."""
    try:
        if socket.has_dualstack_ipv6():
            address = ("", world.port)
            return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", world.port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if taken else f"cannot be opened ({error.strerror})"
        raise UserError(
            f"{world}: port {world.address}:{world.port} {reason}; set another MASTER_PORT, or"
            " end that program"
        ) from None


def _wait_for_port(world: World, timeout: float) -> None:
    """Wait for rank 0 to open the port."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((world.address, world.port), timeout=5.0).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{world}: cannot reach rank 0 at {world.address}:{world.port} within"
                    f" {timeout:g} s ({error}); see what its own output says, and check the"
                    " address and the network between the machines"
                ) from None
            time.sleep(0.1)
        else:
            return


def _introduce(hall: Any, world: World, identity: dict[str, Any], timeout: float) -> None:
    """Claim this process's rank, compare its identity with rank 0's, and wait for all to do so."""
    if hall.add(f"place {world.rank}", 1) > 1:
        _refuse(hall, world, f"{world}: another process has the same RANK; give each its own")
    own = json.dumps(identity, sort_keys=True)
    if world.rank == 0:
        hall.set("identity", own)
    different = changes(json.loads(hall.get("identity")), json.loads(own))
    if different:
        shown = "; ".join(different[:3])
        _refuse(hall, world, f"{world} differs from rank 0: {shown}; start all alike")
    _wait_for_all(hall, world, "here", timeout)


def _compare_clocks(hall: Any, world: World, clock: Callable[[], float], timeout: float) -> None:
    """Compare this process's clock with rank 0's, and refuse to go on where they differ much."""
    if world.rank == 0:
        hall.set("clock", str(clock()))
    skew = clock() - float(hall.get("clock"))
    if abs(skew) > MAX_CLOCK_SKEW:
        _refuse(hall, world, f"{world}: the clock is {skew:+.0f} s off rank 0's; set the clocks")
    _wait_for_all(hall, world, "on time", timeout)


def _wait_for_all(hall: Any, world: World, what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    hall.set(f"{what} {world.rank}", "")
    hall.add(what, 1)
    while hall.add(what, 0) < world.size:
        if hall.check(["refused"]):
            raise PeerLost(f"{world} stops: {hall.get('refused').decode()}")
        if time.monotonic() > deadline:
            missing = [str(r) for r in range(world.size) if not hall.check([f"{what} {r}"])]
            raise RunError(
                f"{world}: after {timeout:g} s still missing: rank {', '.join(missing[:8])};"
                " see what its own output says"
            )
        time.sleep(0.02)


def _refuse(hall: Any, world: World, message: str) -> None:
    hall.set("refused", message)
    raise UserError(message)


def job_name() -> str:
    """Name this process's SLURM job, the same after a requeue; outside SLURM the name is empty."""
    number = os.environ.get("SLURM_JOB_ID")
    return f"SLURM job {number}" if number else ""


def leave(code: int) -> None:
    """End a process that failed among others with its exit code; return if it is alone.

    Not through the end of the interpreter: the connections are still open, and closing them while
    the others do so too may abort the process after it has said all, with another code.
    """
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def report(error: BaseException) -> None:
    """Tell torchrun, if it started this process, what to say in its summary."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        details = {"py_callstack": str(error), "timestamp": str(int(time.time()))}
        message = {"message": str(error), "extraInfo": details}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message}, file)
