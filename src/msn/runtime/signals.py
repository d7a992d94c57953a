"""Catch the signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C, a preemption, and SLURM's warning before a time limit."""


@dataclass
class Stop:
    """The signal that came, 0 if none did."""

    number: int = 0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note signals to stop, to be read at step boundaries; a second of a kind acts at once."""
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        stop.number = number
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, request) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
