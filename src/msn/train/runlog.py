"""The log of a run: CSV, TensorBoard, and lines or a progress bar on the terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from msn.runtime.errors import UserError
from msn.runtime.files import replacing, writing
from msn.runtime.log import logger

COLUMNS = (
    *("epoch", "itr", "time (ms)", "step", "loss", "grad_norm", "lr", "wd"),
    *("images_per_s", "data_wait", "bad_images"),
)
"""What the loop logs of any method; a resume cuts the file by the step."""
PROBE_COLUMNS = ("epoch", "step", "top1")


def csv_path(folder: Path, tag: str, rank: int = 0) -> Path:
    """Name the CSV file that a process logs its steps to."""
    return folder / f"{tag}_r{rank}.csv"


@dataclass(frozen=True)
class Columns:
    """What the tables of a log hold.

    Attributes:
        steps: columns of the table of steps, among them those of `COLUMNS`.
        shown: which of them a line on the terminal shows behind the loss.
        measured: columns of the tables of what is measured, by name: first epoch and step.
    """

    steps: Sequence[str]
    shown: Sequence[str]
    measured: Mapping[str, Sequence[str]]


class RunLog:
    """Writes each logged step to the CSV, TensorBoard and terminal. A context manager.

    Files, in `folder`: `TAG_r0.csv`, the tables of what is measured, such as `TAG-probe.csv`, and
    the event files in `TAG-tensorboard/`. Only rank 0 writes, to files or the terminal. A resumed
    run appends: what was logged at or after `start_step` is taken out first, as the run will log it
    again. What cannot be written later on, on a full disk, is said once and written when it can.
    """

    def __init__(
        self,
        folder: Path | str,
        tag: str,
        *,
        columns: Columns,
        rank: int = 0,
        start_step: int,
        total_steps: int,
        tensorboard: bool,
        terminal: bool | None = None,
    ) -> None:
        """Open the log.

        Args:
            folder: made if missing.
            tag: how the file names begin.
            columns: of its tables.
            rank: of this process.
            start_step: the next step, counted from 0, equal to the number of finished steps.
            total_steps: of the whole run.
            tensorboard: whether to write event files.
            terminal: True for a progress bar, False for plain lines, None to see what stdout is.

        Raises:
            UserError: a file cannot be written, or is a log with other columns.
        """
        folder = Path(folder)
        self._chief = rank == 0
        self._columns, self._shown = tuple(columns.steps), columns.shown
        self._warned = False
        self._table: Table | None = None
        self._measured: dict[str, Table] = {}
        self._board: _Board | None = None
        if self._chief:
            self._table = Table(csv_path(folder, tag), self._columns, start_step)
            for name, own in columns.measured.items():
                path = folder / f"{tag}-{name}.csv"
                self._measured[name] = Table(path, tuple(own), start_step)
            if tensorboard:
                self._board = _Board(folder / f"{tag}-tensorboard", start_step)
        self._total = total_steps
        self._progress: Progress | None = None
        console = Console(force_terminal=sys.stdout.isatty() if terminal is None else terminal)
        if self._chief and console.is_terminal and not console.is_dumb_terminal:
            self._progress = _progress(console, start_step, total_steps)

    def log(self, row: Mapping[str, float]) -> None:
        """Record one step. Does nothing on ranks above 0.

        Args:
            row: a value for each column: `epoch` counts from 1, `itr` (inside the epoch)
                and `step` (of the run) from 0; `data_wait` is a share, 0 to 1.
        """
        if self._table is None:
            return
        self._append(self._table, row)
        for name in self._columns:
            if name not in ("epoch", "itr", "step"):
                self._show(f"train/{name}", row[name], int(row["step"]))
        if self._progress:
            text = (
                f"epoch {int(row['epoch'])}  loss {row['loss']:.4f}  "
                f"{row['images_per_s']:.0f} images/s  ETA {self._eta(row)}"
            )
            self._progress.update(
                self._progress.task_ids[0], completed=int(row["step"]) + 1, text=text
            )
        else:
            logger.info(self._line(row))

    def measured(
        self, name: str, step: int, epoch: int, values: Sequence[float], summary: str
    ) -> None:
        """Record what was measured after an epoch. Does nothing on ranks above 0.

        Args:
            name: of the table.
            step: the last finished step, counted from 0, so that a resume after it keeps the row.
            epoch: number of finished epochs.
            values: of the table's columns behind epoch and step.
            summary: the same in words.
        """
        if name not in self._measured:
            return
        table = self._measured[name]
        row = dict(zip(table.columns, (epoch, step, *values), strict=True))
        self._append(table, row)
        for column in table.columns[2:]:
            self._show(f"{name}/{column}", row[column], step)
        logger.info(f"epoch {epoch}  {summary}")

    def close(self) -> None:
        """Restore the terminal and close the files. Closing again does nothing."""
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        for table in (*self._measured.values(), self._table):
            if table:
                table.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, table: "Table", row: Mapping[str, float]) -> None:
        try:
            table.append(row)
        except UserError as error:
            if not self._warned:
                logger.warning(f"the run continues and writes this later: {error}")
            self._warned = True
        else:
            self._warned = False

    def _show(self, name: str, value: float, step: int) -> None:
        try:
            if self._board:
                self._board.add(name, value, step)
        except UserError as error:
            self._board = None
            logger.warning(f"no more TensorBoard: {error}")

    def _line(self, row: Mapping[str, float]) -> str:
        parts = "  ".join(f"{name} {row[name]:.4f}" for name in self._shown)
        return (
            f"epoch {int(row['epoch'])}  step {int(row['step']) + 1}/{self._total}  "
            f"loss {row['loss']:.4f}{f' ({parts})' if parts else ''}  "
            f"lr {row['lr']:.3g}  {row['images_per_s']:.0f} images/s  "
            f"data wait {100 * row['data_wait']:.0f} %  ETA {self._eta(row)}"
        )

    def _eta(self, row: Mapping[str, float]) -> str:
        return _duration((self._total - 1 - int(row["step"])) * row["time (ms)"] / 1000)


class StepTimer:
    """Images per second and share of time spent waiting for data, between two readings."""

    def __init__(self) -> None:
        self._start_interval(time.perf_counter())

    def data_ready(self) -> None:
        """Note that a batch has arrived."""
        self._wait += time.perf_counter() - self._mark

    def step_done(self, n_images: int) -> None:
        """Note that the step is over; from now on the loop waits for the next batch."""
        self._mark = time.perf_counter()
        self._images += n_images
        self._steps += 1

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out of the count what is done in this context, such as a probe or checkpoint."""
        entered = time.perf_counter()
        yield
        spent = time.perf_counter() - entered
        self._begin += spent
        self._mark += spent

    def read(self) -> dict[str, float]:
        """Give images/s, share of time waiting for data and ms per step, by column; start anew.

        At least one step must have been done.
        """
        now = time.perf_counter()
        elapsed = max(now - self._begin, 1e-9)
        reading = {
            "images_per_s": self._images / elapsed,
            "data_wait": self._wait / elapsed,
            "time (ms)": 1000 * elapsed / self._steps,
        }
        self._start_interval(now)
        return reading

    def _start_interval(self, now: float) -> None:
        self._begin = self._mark = now
        self._wait = 0.0
        self._images = self._steps = 0


class Table:
    """A CSV file of numbers, one row a step, that survives `kill -9` and a resume."""

    def __init__(self, path: Path, columns: tuple[str, ...], start_step: int) -> None:
        self._path, self.columns = path, columns
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.write(",".join(columns) + "\n")
                file.writelines(_kept_lines(path, columns, start_step))
            self._file: IO[bytes] = path.open("ab", buffering=0)
        self._pending = b""

    def append(self, row: Mapping[str, float]) -> None:
        """Write a row, after those that could not be written before.

        Raises:
            UserError: it cannot be written now; the next call tries again.
        """
        if row.keys() != set(self.columns):
            odd = sorted(row.keys() ^ set(self.columns))
            raise ValueError(f"a row of {self._path.name} lacks or should not have {odd}")
        self._pending += (",".join(_cell(row[name]) for name in self.columns) + "\n").encode()
        with writing(self._path):
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def _kept_lines(path: Path, columns: tuple[str, ...], start_step: int) -> Iterator[str]:
    """Read the rows before `start_step`, skipping a line left incomplete by a killed process."""
    if not path.exists():
        return
    where = columns.index("step")
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
        if not header.endswith("\n"):
            return
        if header.rstrip("\n") != ",".join(columns):
            raise UserError(
                f"{path}: is not a log of this version (its first line differs), so it is not "
                "continued: move the file away, or choose another logging.write_tag"
            )
        for line in file:
            cells = line.rstrip("\n").split(",")
            whole = line.endswith("\n") and len(cells) == len(columns)
            whole = whole and len(cells[where]) < 20  # digits, of more int() refuses to read
            if whole and cells[where].isdecimal() and int(cells[where]) < start_step:
                yield line


def _cell(value: float) -> str:
    # Nine digits tell every float32 apart.
    return str(value) if isinstance(value, int) else f"{value:.9g}"


class _Board:
    """TensorBoard event files. On a resume, viewers hide what was written from `start_step` on."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=start_step)

    def add(self, name: str, value: float, step: int) -> None:
        with writing(self._folder):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()


def _progress(console: Console, start_step: int, total_steps: int) -> Progress:
    progress = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
    progress.add_task("", total=total_steps, completed=start_step, text="")
    progress.start()
    return progress


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
