"""Start a process for each device of this machine, and watch them."""

import contextlib
import ctypes
import math
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

GRACE = 20.0  # seconds that the others have to end by themselves once one has ended
STOP_GRACE = 30.0  # seconds to save and end after SIGTERM, as SLURM and others give too
AGAIN_GRACE = 5.0  # seconds to end after a second signal of a kind
LISTEN = 10.0  # seconds for the last words of processes that have ended
KEPT_LINES = 200  # of the errors of a process


@dataclass
class Member:
    """A process, the end of what it wrote to stderr, and whether it had to be killed here."""

    rank: int
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    overdue: bool = False

    def send(self, number: int) -> None:
        """Send a signal to the process if it still runs; SIGKILL goes to its children too."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is not None:
                return
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def listen(self) -> None:
        """Collect the process's stderr until it ends; rank 0's is shown at once."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            if self.rank == 0:
                sys.stderr.write(line)
                sys.stderr.flush()


@dataclass
class Asked:
    """The signals that came, and until when all have to have ended because of them."""

    numbers: set[int] = field(default_factory=set)
    deadline: float = math.inf

    def again(self, number: int) -> None:
        """Note one more signal, and the deadline if it sets one."""
        limit = AGAIN_GRACE if number in self.numbers else STOP_GRACE
        if number in self.numbers or number == signal.SIGTERM:
            self.deadline = min(self.deadline, time.monotonic() + limit)
        self.numbers.add(number)


def spawn(arguments: Sequence[str], devices: Sequence[str]) -> int:
    """Run `msn ARGUMENTS --devices DEVICE` once for each device, and give one exit code for all.

    If one fails the others are ended, and its error is the last on the screen. SIGINT, SIGTERM and
    SIGUSR2 are passed on, and wake who was stopped; what has not ended some time after SIGTERM, or
    after a second one of the others, is killed. If this process is killed, so are the others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = []
    for rank, device in enumerate(devices):
        world = World(rank, len(devices), rank, "127.0.0.1", port)
        members.append(Member(rank, _start([*arguments, "--devices", device], world)))
    listeners = [threading.Thread(target=member.listen, daemon=True) for member in members]
    for listener in listeners:
        listener.start()
    with _signals_passed_to(members) as asked:
        first = _first_to_fail(members, asked)
        if first:
            _end(members, asked)
    deadline = time.monotonic() + LISTEN  # a grandchild that is left may hold on to stderr
    for listener in listeners:
        listener.join(max(0.0, deadline - time.monotonic()))
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
def _signals_passed_to(members: list[Member]) -> Iterator[Asked]:
    asked = Asked()

    def forward(number: int, frame: FrameType | None) -> None:
        asked.again(number)
        for member in members:
            member.send(number)
            member.send(signal.SIGCONT)  # to one that was stopped, so that it can heed the other

    previous = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_to_fail(members: list[Member], asked: Asked) -> Member | None:
    """Wait until all have ended well, or one has failed or is overdue, and give that one."""
    patience = math.inf
    while True:
        codes = [member.process.poll() for member in members]
        failed = [member for member, code in zip(members, codes, strict=True) if code]
        running = [member for member, code in zip(members, codes, strict=True) if code is None]
        # Whoever lost another is not to blame: wait for the one that is.
        to_blame = [m for m in failed if m.process.returncode != PeerLost.exit_code]
        if to_blame:
            return to_blame[0]
        if not running:
            return failed[0] if failed else None
        now = time.monotonic()
        if len(running) < len(members):
            patience = min(patience, now + GRACE)
        if now > min(patience, asked.deadline):
            for member in running:
                member.overdue = True
                member.send(signal.SIGKILL)
            return failed[0] if failed else running[0]
        time.sleep(0.05)


def _end(members: list[Member], asked: Asked) -> None:
    """Give all processes time to end, then end them."""
    for number, patience in ((None, GRACE), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        if number != signal.SIGKILL:
            deadline = min(deadline, asked.deadline)
        for member in members:
            if number:
                member.send(number)
        for member in members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))


def _last_words(first: Member) -> int:
    """Show the first failed process's error if it is not on the screen; give its exit code."""
    code = first.process.returncode
    text = "".join(first.errors)
    if code < 0:
        name = signal.Signals(-code).name
        reason = "did not end in time and " if first.overdue else ""
        print(f"{text}error: rank {first.rank} {reason}was killed by {name}", file=sys.stderr)
        return 128 - code
    if first.rank and code != Interrupted.exit_code:
        print(f"rank {first.rank}: {text.rstrip()}", file=sys.stderr)
    return code
