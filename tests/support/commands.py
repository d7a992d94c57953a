"""Run the command in processes of their own, quickly: forked from one that has imported it all."""

import contextlib
import multiprocessing
import os
import re
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.support.forking import CONTEXT


def start(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """`msn ARGUMENTS`, a group of its own, with stdout and stderr in OUTPUT.out and OUTPUT.err."""
    return _started(_command, list(arguments), output, environment or {})


def start_python(words: Sequence[str], output: Path, folder: Path) -> BaseProcess:
    """`python WORDS` in a folder, be it a script or `-m` and a module, likewise."""
    return _started(_python, list(words), output, folder)


def _started(
    target: Callable[..., None], words: list[str], output: Path, *more: Any
) -> BaseProcess:
    for name in ("out", "err"):  # of a command before
        Path(f"{output}.{name}").unlink(missing_ok=True)
    process = CONTEXT.Process(target=target, args=(words, output, *more))
    process.start()
    return process


def _command(arguments: list[str], output: Path, environment: Mapping[str, str]) -> None:
    from msn.cli.main import main

    os.environ.update(environment)
    _settle(output)
    sys.exit(main(arguments))


def _python(words: list[str], output: Path, folder: Path) -> None:
    os.chdir(folder)
    _settle(output)
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def _settle(output: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # Python's default, of loader workers
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of what it starts itself
    for name, number in (("out", 1), ("err", 2)):
        descriptor = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    with contextlib.suppress(ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def text(output: Path, name: str = "err") -> str:
    """What such a command has written so far."""
    path = Path(f"{output}.{name}")
    return path.read_text() if path.exists() else ""


def wait_for_step(process: BaseProcess, output: Path, step: int) -> None:
    """Return once the command has logged the step, or a later one."""
    while not any(int(found) >= step for found in re.findall(r"step (\d+)/", text(output, "out"))):
        assert process.is_alive(), text(output)
        time.sleep(0.02)


def end(process: BaseProcess, timeout: float = 120) -> int:
    """Its exit code, once it has ended by itself; never later than `timeout`."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"still running after {timeout} s")
    assert process.exitcode is not None
    return process.exitcode
