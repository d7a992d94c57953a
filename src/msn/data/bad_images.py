"""Bad images of a pre-training: report and list each once, stop the run if there are too many."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from msn.data.image import BadImage
from msn.runtime import collectives
from msn.runtime.errors import RunError, UserError, printable
from msn.runtime.files import open_regular, replacing, writing
from msn.runtime.log import logger

COLUMNS = ("step", "name", "reason")
NAMED = 5  # in the message that stops the run


def bad_images_path(folder: Path, tag: str) -> Path:
    """Give the path of the list of bad images that a run met."""
    return folder / f"{tag}-bad-images.csv"


class BadImages:
    """Keeps the list, which is there from the first bad image on, and goes on with it on a resume.

    Attributes:
        path: of the list, a CSV of `step` (at which the image was met first), `name` and `reason`.
        count: different bad images that the run met so far; those of the other processes as of the
            last exchange. A resumed run counts those that it met before the step that it goes on
            from, so that it counts what the unbroken one does.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: int,
        max_bad: float,
        start_step: int,
    ) -> None:
        """Open the list of a run's bad images, and resume it if it is there.

        Args:
            path: of the list; made when there is something to write.
            images: in the data set.
            max_bad: the share of them, 0 to 1, that may be bad.
            start_step: the next step.

        Raises:
            UserError: the list cannot be read or written.
        """
        self.path, self._images, self._max_bad = path, images, max_bad
        listed = list(_entries(path))
        if listed:  # again, without what a killed process may have left half-written
            with replacing(path) as temporary:
                _append(temporary, [COLUMNS, *listed])
        self._listed = {name for _, name, _ in listed}
        self._met = {name: reason for step, name, reason in listed if int(step) < start_step}
        self._untold = dict(self._met)  # to the other processes
        if self._met:
            logger.info(f"{self.count} bad images so far, replaced by others and listed in {path}")

    @property
    def count(self) -> int:
        return len(self._met)

    def record(self, step: int, bad: Iterable[BadImage]) -> None:
        """Record the bad images that a step met.

        Raises:
            RunError: there are more than `max_bad` allows.
            UserError: the list cannot be written.
        """
        for image in bad:
            name, reason = printable(image.name), printable(image.reason)
            if name not in self._met:
                self._met[name] = self._untold[name] = reason
            if name not in self._listed:
                self._listed.add(name)
                entry = (str(step), name, reason)
                with writing(self.path):
                    _append(self.path, [entry] if self.path.exists() else [COLUMNS, entry])
                logger.info(f"bad image, replaced by another: {name}: {reason}")
        if bad:
            self._require_few()

    def exchange(self) -> None:
        """Count the bad images of the other processes too; all call this at the same step.

        Raises:
            RunError: together they are more than `max_bad` allows.
        """
        for met in collectives.of_all(self._untold):
            self._met |= met
        self._untold = {}
        self._require_few()

    def _require_few(self) -> None:
        if self.count > self._max_bad * self._images:
            others = " and by the other processes" * (collectives.world_size() > 1)
            raise RunError(
                f"{self.count} of {self._images} images are bad, more than data.max_bad"
                f" {self._max_bad:g} allows: {self._first_names()}; repair those listed in"
                f" {self.path}{others}, or raise data.max_bad; the same command then resumes"
            )

    def _first_names(self) -> str:
        named = [f"{name} ({reason})" for name, reason in list(self._met.items())[:NAMED]]
        return ", ".join(named) + (", ..." if self.count > NAMED else "")


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the entries of the list, without a line that a killed process left half-written."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "replace")
        for row in csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]):
            if len(row) == len(COLUMNS) and row[0].isdecimal():
                yield str(int(row[0])), row[1], row[2]
    except FileNotFoundError:
        return
    except (OSError, csv.Error, ValueError) as error:  # the last of a step of too many digits
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read as the run's list of bad images ({reason}); move it away, and"
            " the run lists again those that it meets from now on"
        ) from error


def _append(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
