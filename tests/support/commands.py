"""Run the command in processes of their own, quickly: forked from one that has imported it all."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.support.forking import CONTEXT


def start(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """`msn ARGUMENTS`, with stdout and stderr in OUTPUT.out and OUTPUT.err."""
    process = CONTEXT.Process(target=_command, args=(list(arguments), output, environment or {}))
    process.start()
    return process


def _command(arguments: list[str], output: Path, environment: Mapping[str, str]) -> None:
    from msn.cli.main import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    for name, number in (("out", 1), ("err", 2)):
        descriptor = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    with contextlib.suppress(ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(arguments))


def text(output: Path, name: str = "err") -> str:
    """What such a command has written so far."""
    path = Path(f"{output}.{name}")
    return path.read_text() if path.exists() else ""


def end(process: BaseProcess, timeout: float = 120) -> int:
    """Its exit code, once it has ended by itself; never later than `timeout`."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"still running after {timeout} s")
    assert process.exitcode is not None
    return process.exitcode
