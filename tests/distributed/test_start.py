"""How processes find each other, and what is said when they do not. Never a lonely run."""

import socket
import time
from pathlib import Path

import pytest

from msn.distributed import VARIABLES, World, find_world
from msn.errors import UserError
from tests.distributed.commands import end, start, text
from tests.experiments import write_tiny

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
    assert "rank 0 cannot go on" in text(tmp_path / "1")
