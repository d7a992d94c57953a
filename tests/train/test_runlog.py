import contextlib
import csv
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from msn.methods.msn.model import MSN
from msn.runtime.errors import UserError
from msn.runtime.log import logger
from msn.train import runlog
from msn.train.runlog import PROBE_COLUMNS, Columns, RunLog, StepTimer, csv_path

COLUMNS = MSN.COLUMNS
OFFICIAL = ["epoch", "itr", "msn", "me_max", "ent", "time (ms)"]


def row(step: int, **values: float) -> dict[str, float]:
    """A row whose values tell the step and the column apart; ten steps an epoch."""
    numbers = {name: step + place / 100 for place, name in enumerate(COLUMNS)}
    return {**numbers, "epoch": step // 10 + 1, "itr": step % 10, "step": step, **values}


def open_log(
    folder: Path,
    start: int = 0,
    *,
    total: int = 40,
    rank: int = 0,
    tensorboard: bool = False,
    terminal: bool = False,
) -> RunLog:
    return RunLog(
        folder,
        "run",
        columns=Columns(COLUMNS, MSN.SHOWN, {"probe": PROBE_COLUMNS}),
        rank=rank,
        start_step=start,
        total_steps=total,
        tensorboard=tensorboard,
        terminal=terminal,
    )


def measured(log: RunLog, step: int, top1: float) -> None:
    log.measured("probe", step, step // 10 + 1, [top1], f"k-NN probe: {top1:.1f} %")


def write(folder: Path, steps: range, *, tensorboard: bool = False) -> None:
    """Log `steps`, and a probe after each tenth, as a run would that starts at the first."""
    with open_log(folder, steps.start, tensorboard=tensorboard) as log:
        for step in steps:
            log.log(row(step))
            if step % 10 == 9:
                measured(log, step, 50 + step)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_begin_with_the_official_ones(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    path = csv_path(tmp_path, "run")
    assert path.name == "run_r0.csv"
    header, *rows = path.read_text().splitlines()
    assert header.split(",") == list(COLUMNS)
    assert header.split(",")[:7] == [*OFFICIAL, "step"]
    assert rows[1].startswith("1,1,1.02,1.03,1.04,1.05,1,1.07,")


def test_cells_give_back_every_float32() -> None:
    bits = np.random.default_rng(0).integers(2**32, size=20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    found = np.array([runlog._cell(float(value)) for value in values], dtype=np.float32)
    assert np.array_equal(found, values)


def test_not_a_number_is_written_as_such(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.log(row(0, loss=float("nan")))
    assert table(tmp_path / "run_r0.csv")[0]["loss"] == "nan"


@pytest.mark.parametrize("stopped_after", [0, 7, 10, 23])
@pytest.mark.parametrize("saved_at", [0, 5, 10, 20])
def test_a_resumed_log_equals_the_unbroken_one(
    tmp_path: Path, stopped_after: int, saved_at: int
) -> None:
    saved_at = min(saved_at, stopped_after)
    write(tmp_path / "whole", range(30))
    write(tmp_path / "broken", range(stopped_after))
    write(tmp_path / "broken", range(saved_at, 30))
    for name in ("run_r0.csv", "run-probe.csv"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "broken" / name).read_bytes() == expected
    assert len(table(tmp_path / "whole" / "run-probe.csv")) == 3
    assert not list((tmp_path / "broken").glob("*.tmp"))


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    path = tmp_path / "run_r0.csv"
    whole = path.read_bytes()
    header = whole.index(b"\n")
    for length in {*range(0, len(whole), 41), header, header + 1, len(whole) - 1, len(whole)}:
        path.write_bytes(whole[:length])
        open_log(tmp_path, 99).close()
        kept = path.read_bytes()
        lines = max(1, whole[:length].count(b"\n"))  # whole lines; the header at least
        assert kept == b"".join(whole.splitlines(keepends=True)[:lines])


def test_a_row_of_a_step_of_thousands_of_digits_goes(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    path = tmp_path / "run_r0.csv"
    whole = path.read_bytes()
    last = whole.splitlines()[-1].decode().split(",")
    last[whole.splitlines()[0].decode().split(",").index("step")] = "9" * 5000
    path.write_bytes(whole + ",".join(last).encode() + b"\n")
    open_log(tmp_path, 99).close()
    assert path.read_bytes() == whole


def test_a_log_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run_r0.csv"
    path.write_text("epoch,itr,msn\n1,0,2.5\n")
    with pytest.raises(UserError, match=r"run_r0\.csv.*move the file away.*logging\.write_tag"):
        open_log(tmp_path)
    assert path.read_text() == "epoch,itr,msn\n1,0,2.5\n"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_reach_the_file_at_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(3):
            log.log(row(step))
            assert len(table(tmp_path / "run_r0.csv")) == step + 1


def test_a_row_has_to_be_complete(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        short = row(0)
        del short["rankme"]
        with pytest.raises(ValueError, match="rankme"):
            log.log(short)
        with pytest.raises(ValueError, match="speed"):
            log.log(row(0, speed=1.0))
    assert table(tmp_path / "run_r0.csv") == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"written.*; remove the file that .*logging\.folder"):
        open_log(tmp_path / "file")


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 kB, as if the disk were full. Nor may what pytest itself writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("capsys")  # what is printed goes to no file
def test_a_full_disk_is_told_once_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path) as log:
        with small_files():
            for step in range(40):
                log.log(row(step))
        assert len(table(tmp_path / "run_r0.csv")) < 40
        log.log(row(40))
    assert [int(line["step"]) for line in table(tmp_path / "run_r0.csv")] == list(range(41))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "run_r0.csv: cannot be written" in warnings[0]


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path) as log:
        values = {"loss": 2.5, "msn": 2.25, "me_max": 0.25, "ent": 1.5, "time (ms)": 500.0}
        log.log(row(29, lr=0.00123456, images_per_s=812.4, data_wait=0.031, **values))
        measured(log, 29, 91.25)
        logger.info("a [bold] word")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3  step 30/40  loss 2.5000 (msn 2.2500  me_max 0.2500  ent 1.5000)  lr 0.00123  "
        "812 images/s  data wait 3 %  ETA 0:05",
        "epoch 3  k-NN probe: 91.2 %",
        "a [bold] word",
    ]


@pytest.mark.parametrize(
    ("left", "ms", "shown"), [(10, 100, "0:01"), (100, 1000, "1:40"), (40_000, 250, "2:46:40")]
)
def test_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: int, ms: float, shown: str
) -> None:
    with open_log(tmp_path, total=left + 1) as log:
        log.log(row(0, **{"time (ms)": ms}))
    assert capsys.readouterr().out.endswith(f"ETA {shown}\n")


def test_a_terminal_gets_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path, terminal=True) as log:
        log.log(row(29, loss=2.5, images_per_s=812.4))
        logger.info("a [bold] word")
    out = capsys.readouterr().out
    assert "30/40" in out
    assert "loss 2.5000" in out
    assert "812 images/s" in out
    assert "a [bold] word" in out
    assert "data wait" not in out
    assert out.endswith("\x1b[?25h"), "the cursor has to be shown again"


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path, rank=3, tensorboard=True, terminal=True) as log:
        log.log(row(0))
        measured(log, 0, 50.0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    write(tmp_path, range(14), tensorboard=True)
    write(tmp_path, range(10, 20), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run-tensorboard")).Reload()
    loss = COLUMNS.index("loss") / 100
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(step + loss)) for step in range(20)]
    assert [(event.step, event.value) for event in events.Scalars("probe/top1")] == [
        (9, 59),
        (19, 69),
    ]
    shown = {f"train/{name}" for name in COLUMNS} - {"train/epoch", "train/itr", "train/step"}
    assert set(events.Tags()["scalars"]) == shown | {"probe/top1"}


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(runlog, "time", fake)
    return fake


def test_timer(clock: Clock) -> None:
    timer = StepTimer()
    for wait, work in ((0.5, 1.0), (1.5, 1.0)):
        clock.now += wait
        timer.data_ready()
        clock.now += work
        timer.step_done(64)
    assert tuple(timer.read().values()) == pytest.approx((128 / 4, 2 / 4, 2000))
    # A new interval begins.
    clock.now += 0.25
    timer.data_ready()
    clock.now += 0.75
    timer.step_done(32)
    assert tuple(timer.read().values()) == pytest.approx((32, 0.25, 1000))


def test_timer_leaves_out_what_is_done_aside(clock: Clock) -> None:
    timer = StepTimer()
    clock.now += 1
    timer.data_ready()
    clock.now += 1
    timer.step_done(10)
    with timer.aside():
        clock.now += 50
    clock.now += 1
    timer.data_ready()
    clock.now += 1
    timer.step_done(10)
    assert tuple(timer.read().values()) == pytest.approx((5, 0.5, 2000))
