"""Several processes on this machine, one a device, started and watched by the one in front."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

import torch

from msn.runtime.distributed import World
from msn.runtime.errors import Interrupted, PeerLost
from msn.runtime.signals import STOPPING

GRACE = 20.0  # seconds that the others have to end by themselves once one has failed
KEPT_LINES = 200  # of the errors of a process


@dataclass
class Member:
    """A process, and the end of what it wrote to stderr."""

    rank: int
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    def listen(self) -> None:
        """Collect stderr until it ends; that of rank 0 is shown at once."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            if self.rank == 0:
                sys.stderr.write(line)
                sys.stderr.flush()


def spawn(arguments: Sequence[str], devices: Sequence[str]) -> int:
    """Run `msn ARGUMENTS --devices DEVICE` once for each device; the exit code of the whole.

    If one fails the others are ended, and its error is the last on the screen. SIGINT, SIGTERM and
    SIGUSR2 are passed on. If this process is killed, so are the others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = []
    for rank, device in enumerate(devices):
        world = World(rank, len(devices), rank, "127.0.0.1", port)
        members.append(Member(rank, _start([*arguments, "--devices", device], world)))
    listeners = [threading.Thread(target=member.listen) for member in members]
    for listener in listeners:
        listener.start()
    with _signals_passed_to(members):
        first = _first_to_fail(members)
        if first:
            _end(members)
    for listener in listeners:
        listener.join()
    return _last_words(first) if first else 0


def _start(arguments: list[str], world: World) -> subprocess.Popen[str]:
    environment = {**os.environ, **world.variables()}
    # The machine's cores are shared out, instead of each process taking all of them.
    threads = max(1, torch.get_num_threads() // world.size)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    parent = os.getpid()

    def die_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(
        [sys.executable, "-m", "msn", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a signal of the terminal comes once, through this process
        preexec_fn=die_with_parent,
    )


@contextlib.contextmanager
def _signals_passed_to(members: list[Member]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_to_fail(members: list[Member]) -> Member | None:
    """Wait until all have ended well, or one has failed; the one that did."""
    patience = None
    while True:
        codes = [member.process.poll() for member in members]
        failed = [member for member, code in zip(members, codes, strict=True) if code]
        # Whoever lost another is not to blame: wait for the one that is.
        to_blame = [m for m in failed if m.process.returncode != PeerLost.exit_code]
        if to_blame:
            return to_blame[0]
        if failed and patience is None:
            patience = time.monotonic() + GRACE
        if None not in codes or (patience and time.monotonic() > patience):
            return failed[0] if failed else None
        time.sleep(0.05)


def _end(members: list[Member]) -> None:
    """Give all processes time to end, then end them."""
    for number, patience in ((None, GRACE), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        for member in members:
            if number and member.process.poll() is None:
                member.process.send_signal(number)
        for member in members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))


def _last_words(first: Member) -> int:
    """Show the error of the process that failed first, if it is not on the screen; its code."""
    code = first.process.returncode
    text = "".join(first.errors)
    if code < 0:
        name = signal.Signals(-code).name
        print(f"{text}error: rank {first.rank} was killed by {name}", file=sys.stderr)
        return 128 - code
    if first.rank and code != Interrupted.exit_code:
        print(f"rank {first.rank}: {text.rstrip()}", file=sys.stderr)
    return code
