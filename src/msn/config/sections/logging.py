"""Section `logging`: what a run writes, and where."""

from typing import Annotated

from pydantic import AfterValidator

from msn.config.protocol import PROTOCOL
from msn.config.sections.base import Count, Divisor, PathOrEmpty, PathText, Section, Whole
from msn.config.sections.data import SourceName


def _file_stem(tag: str) -> str:
    if not tag.isprintable() or tag in ("", ".", "..") or set(tag) & set("/\\"):
        raise ValueError("must be a plain file name: not empty, no '/' and no '\\'")
    return tag


FileStem = Annotated[str, AfterValidator(_file_stem)]


class Probe(Section):
    """A k-nearest-neighbor probe of the target encoder during the run."""

    every: Whole = 10
    """Epochs between probes; 0 probes only at the end."""
    source: SourceName | None = None
    """Labeled source; null takes data.source."""
    root_path: PathOrEmpty | None = None
    """Its root folder; null takes data.root_path."""
    image_folder: PathOrEmpty | None = None
    """Its folder below the root; null takes data.image_folder."""
    skip_bad: bool = False
    """Go on without images that cannot be read."""
    image_list: PathText | None = None
    """Its list of images; null takes data.image_list."""
    k: Count = PROTOCOL.k
    """Neighbors that vote."""
    temperature: Divisor = PROTOCOL.temperature
    """Temperature of the votes."""
    max_images: Count | None = 10_000
    """At most this many images of each split, which are kept in memory; null takes all."""
    report: bool = False
    """At the end, print a low-shot table and draw loss curve, neighbors and, of a method that
    predicts pixels, reconstructions."""

    def images(self) -> dict[str, str]:
        """Give the keys of `data` that the probe replaces; they are not validated together."""
        keys = {"source", "root_path", "image_folder", "image_list"}
        return self.model_dump(include=keys, exclude_none=True)


class RunLogging(Section):
    """What any run writes, and where."""

    folder: PathText
    """Output folder; created when missing."""
    write_tag: FileStem
    """First part of the names of all files written."""
    checkpoint_freq_itr: Count = 2500
    """Steps between saves of the latest checkpoint, which each epoch ends with too."""
    keep: Count = 1
    """Newest saves kept: the latest and, beyond 1, TAG-stepN before it."""
    async_save: bool = False
    """Write checkpoints in the background, from a copy in host memory; one at a time."""
    log_freq: Count = 10
    """Steps between log lines."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""


class Logging(RunLogging):
    """What a pre-training writes, and where."""

    write_tag: FileStem = "msn"
    """First part of the names of all files written."""
    checkpoint_freq: Count = 25
    """Epochs between numbered checkpoints."""
    probe: Probe | None = None
    """Probe with labeled images; null has none."""
