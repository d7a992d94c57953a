"""How processes find each other, and what is said when they do not. Never a lonely run."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from msn.runtime import collectives, lock
from msn.runtime.distributed import VARIABLES, World, find_world, joined
from msn.runtime.errors import PeerLost, RunError, UserError
from msn.train.pretraining import pretrain
from tests.support.commands import end, start, text
from tests.support.experiments import tiny_config, write_tiny
from tests.support.forking import CONTEXT
from tests.support.processes import run_on
from tests.train.test_pretraining import ROOT

pytestmark = pytest.mark.processes

WHOLE = dict(zip(VARIABLES, ("1", "4", "1", "node", "29500"), strict=True))


def test_no_variables_are_one_process() -> None:
    assert find_world({"PATH": "/bin"}) == World()


def test_torchrun_and_the_spawner_are_understood() -> None:
    world = find_world({**WHOLE, "LOCAL_WORLD_SIZE": "2"})
    assert world == World(1, 4, 1, "node", 29500, serves=False)
    assert find_world(world.variables()) == world
    first = {**WHOLE, "RANK": "0", "LOCAL_RANK": "0"}
    assert find_world(first).serves
    assert not find_world({**first, "TORCHELASTIC_USE_AGENT_STORE": "True"}).serves


@pytest.mark.parametrize("name", VARIABLES)
def test_any_partial_environment_is_refused(name: str) -> None:
    partial = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(UserError, match=f"but not {name}"):
        find_world(partial)
    with pytest.raises(UserError, match="but not"):
        find_world({name: WHOLE[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "one"}, "RANK='one' is not a number"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "contradict"),
        ({"LOCAL_WORLD_SIZE": "8"}, "contradict"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
    ],
)
def test_a_contradictory_environment_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_world({**WHOLE, **changes})


def test_an_allocation_without_srun_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_NTASKS=2, but this process was not started by srun"):
        find_world({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"}
    assert find_world(step) == World()


# --- meeting


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def world(rank: int, size: int, port: int) -> dict[str, str]:
    return World(rank, size, rank, "127.0.0.1", port).variables()


def command(folder: Path, *overrides: str, timeout: float = 30) -> list[str]:
    config = folder / "tiny.yaml"
    if not config.exists():
        write_tiny(config, folder / "run")
    return ["pretrain", "--fname", str(config), f"--start-timeout={timeout}", *overrides]


def assert_nothing_written(folder: Path) -> None:
    assert not list((folder / "run").glob("*")) if (folder / "run").exists() else True


@pytest.mark.parametrize("present", [0, 1])
def test_a_missing_peer_is_named_within_the_time(tmp_path: Path, port: int, present: int) -> None:
    begin = time.monotonic()
    output = tmp_path / "output"
    process = start(command(tmp_path, timeout=2), output, world(present, 2, port))
    assert end(process) == 1
    assert time.monotonic() - begin < 60
    expected = "still missing: rank 1" if present == 0 else "rank 1 of 2"
    assert expected in text(output)
    assert len(text(output).strip().splitlines()) == 1
    assert_nothing_written(tmp_path)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        processes = [
            start(command(tmp_path, timeout=3), tmp_path / f"{rank}", world(rank, 2, port))
            for rank in range(2)
        ]
        assert all(end(process) for process in processes)
    assert f"port 127.0.0.1:{port} is taken" in text(tmp_path / "0")
    assert len(text(tmp_path / "0").strip().splitlines()) == 1
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("ranks", "override", "message"),
    [
        ((0, 1), "data.patch_drop=0.5", "from rank 0: config.data.patch_drop: 0.25 -> 0.5"),
        ((0, 1, 1), "data.patch_drop=0.25", "another process has the same RANK"),
    ],
)
def test_processes_that_do_not_belong_together(
    tmp_path: Path, port: int, ranks: tuple[int, ...], override: str, message: str
) -> None:
    """Told on the rank that knows, and on rank 0; no rank goes on alone."""
    write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    processes = [
        start(
            command(tmp_path, *[override] * rank, timeout=9),
            tmp_path / f"{i}",
            world(rank, 3, port),
        )
        for i, rank in enumerate(ranks)
    ]
    assert all(end(process) for process in processes)
    assert any(message in text(tmp_path / f"{i}") for i in range(len(ranks)))
    for i in range(len(ranks)):
        assert len(text(tmp_path / f"{i}").strip().splitlines()) == 1
    assert_nothing_written(tmp_path)


def test_an_error_of_one_process_ends_all(tmp_path: Path, port: int) -> None:
    """Rank 1 finds no images; rank 0, which does, does not train alone."""
    (tmp_path / "blocked").write_text("a file")
    overrides = [f"logging.folder={tmp_path / 'blocked'}"]  # only rank 0 prepares the folder
    processes = [
        start(command(tmp_path, *overrides), tmp_path / f"{rank}", world(rank, 2, port))
        for rank in range(2)
    ]
    assert [end(process) for process in processes] == [2, 3]
    assert "cannot be written" in text(tmp_path / "0")
    assert "rank 0 cannot continue" in text(tmp_path / "1")


def test_the_end_of_the_interpreter_does_not_change_the_exit_code(
    tmp_path: Path, port: int
) -> None:
    """Closing the connections while others do so too may abort; the code has to stand by then."""
    aborting = (
        "import atexit, os, sys; from msn.cli.main import main;"
        " atexit.register(os.abort); sys.exit(main(sys.argv[1:]))"
    )
    words = command(tmp_path, "meta.load_checkpoint=true")  # only rank 0 looks for it
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", aborting, *words],
            env={**os.environ, **world(rank, 2, port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 3], said
    assert "meta.load_checkpoint is true, but" in said[0]
    assert "rank 0 cannot continue" in said[1]


def test_another_version_of_the_code_is_refused(tmp_path: Path, port: int) -> None:
    """A checkout that one machine has pulled and the other has not."""
    shutil.copytree(ROOT / "src", tmp_path / "pulled")
    with (tmp_path / "pulled" / "msn" / "schedules.py").open("a") as file:
        file.write("# newer\n")
    arguments = command(tmp_path)
    first = start(arguments, tmp_path / "0", world(0, 2, port))
    environment = {**os.environ, **world(1, 2, port), "PYTHONPATH": str(tmp_path / "pulled")}
    other = subprocess.run(
        [sys.executable, "-m", "msn", *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (other.returncode, end(first)) == (2, 3)
    for said in (other.stderr, text(tmp_path / "0")):
        assert re.search(r"rank 1 of 2 .* differs from rank 0: code: \w{12} -> \w{12}; start", said)
        assert len(said.strip().splitlines()) == 1
    assert_nothing_written(tmp_path)


def meet(rank: int, port: int, ahead: float, output: Path) -> None:
    """Join a run of two with a clock that is so many seconds ahead, and write what comes of it."""
    place = World(rank, 2, rank, "127.0.0.1", port, serves=rank == 0)
    try:
        with joined(
            place,
            torch.device("cpu"),
            identity={},
            timeout=20,
            patience=60,
            clock=lambda: time.time() + ahead,
        ):
            output.write_text("met")
    except (UserError, RunError) as error:
        output.write_text(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("ahead", [-300.0, 45.0])
def test_a_clock_that_is_off_is_refused(tmp_path: Path, port: int, ahead: float) -> None:
    clocks = (0.0, ahead)
    outputs = [tmp_path / str(rank) for rank in range(2)]
    processes = [
        CONTEXT.Process(target=meet, args=(rank, port, clocks[rank], outputs[rank]))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert [end(process) for process in processes] == [0, 0]
    first, second = (path.read_text() for path in outputs)
    if ahead == 45:
        assert (first, second) == ("met", "met")
    else:
        assert re.fullmatch(r"UserError: rank 1 .*: the clock is -300 s off rank 0's; .*", second)
        assert first == f"PeerLost: {World(0, 2)} stops: {second.removeprefix('UserError: ')}"


def work_together(rank: int, port: int, stopped: int, output: Path) -> None:
    """Work with another process; rank `stopped` stops half-way. What comes of it is written."""
    place = World(rank, 2, rank, "127.0.0.1", port, serves=rank == 0)
    try:
        with joined(place, torch.device("cpu"), identity={}, timeout=20, patience=1.0):
            collectives.of_all(rank)
            if rank == stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            collectives.of_all(rank)
    except PeerLost as error:
        output.write_text(str(error))


@pytest.mark.parametrize("stopped", [1, 0])
def test_who_does_not_answer_is_named(tmp_path: Path, port: int, stopped: int) -> None:
    """Also if it is rank 0, which serves what the others could agree by."""
    processes = [
        CONTEXT.Process(target=work_together, args=(rank, port, stopped, tmp_path / "said"))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert end(processes[1 - stopped]) == 0
    processes[stopped].kill()
    assert re.fullmatch(
        rf"rank {1 - stopped} of 2 on .*: rank {stopped} did not answer for 1 s; see whether it is"
        r" stopped or stuck there, or raise meta\.collective_timeout if it was at work",
        (tmp_path / "said").read_text(),
    )


def train_at_home(folder: Path) -> str:
    """A run in a relative folder, with a home of each process's own."""
    home = folder / str(collectives.rank())
    home.mkdir()
    os.chdir(home)
    lock.SHARED_WITHIN = 1.0
    try:
        pretrain(tiny_config(Path("run")), torch.device("cpu"))
    except (UserError, PeerLost) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_a_folder_of_each_machine_is_refused(tmp_path: Path) -> None:
    first, second = run_on(2, train_at_home, tmp_path)
    assert "UserError: logging.folder run: is not shared between the machines" in second
    assert first == f"PeerLost: rank 1 cannot continue: {second.removeprefix('UserError: ')}"
    assert not list(tmp_path.glob("*/run/*"))
