"""What a learner is (`Learner`), and how it resumes from its checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from msn.config.kinds import EvaluationFile
from msn.data.classes import some
from msn.evaluation.accuracy import Score
from msn.evaluation.job import Job
from msn.runtime import checkpoint
from msn.runtime.checkpoint import CLASSIFIER, Found, State
from msn.runtime.collectives import agreed
from msn.runtime.errors import UserError
from msn.runtime.log import logger
from msn.runtime.resumable import config_changes, refusal, whole_number


class Learner(Protocol):
    """What is trained: one classifier, or several that see the same images.

    Attributes:
        PHASES: labels of `record_function` in `train_step`, in their order.
    """

    PHASES: ClassVar[tuple[str, ...]]

    @property
    def names(self) -> Sequence[str]:
        """Names of the classifiers."""
        ...

    def learning_rate(self, step: int) -> float:
        """Give the learning rate of the first classifier at a step, for the log."""
        ...

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Take one optimizer step on images (B, C, S, S); return the losses (classifiers,)."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (classifiers, B, classes), without randomness."""
        ...

    def state(self) -> State:
        """Collect all that training changes; the classifier's weights under `CLASSIFIER`."""
        ...

    def load_state(self, found: Found) -> None:
        """Load what `state` gave. Raises UserError if it is of another model."""
        ...


def latest_path(config: EvaluationFile) -> Path:
    """Name the checkpoint that a run resumes from."""
    return checkpoint.latest_path(Path(config.logging.folder), config.logging.write_tag)


def best_path(config: EvaluationFile) -> Path:
    """Name the checkpoint with the classifiers of the best epoch."""
    return checkpoint.best_path(Path(config.logging.folder), config.logging.write_tag)


def resume(config: EvaluationFile, job: Job, learner: Learner) -> tuple[int, list[list[Score]]]:
    """Load the run's newest checkpoint; return the finished steps and each epoch's scores.

    Raises:
        UserError: it is of another run, or there is none and `meta.load_checkpoint` insists.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    found = checkpoint.newest_for_all(
        lambda: checkpoint.load_newest(folder, tag, CLASSIFIER),
        lambda path: Found(path, checkpoint.load(path, CLASSIFIER)),
    )
    if found is None:
        if config.meta.load_checkpoint:
            raise UserError(
                f"meta.load_checkpoint is true, but there is no {latest_path(config)};"
                " set it to false to start from the beginning"
            )
        return 0, []
    with agreed():
        changed = config_changes(found, config)
        take_up(job, learner, found)
        step, epochs = steps_done(job, learner, found)
    for change in changed:
        logger.info(f"changed since the checkpoint: {change}")
    logger.info(f"resumed from {found.path}: {step} of {job.total_steps} steps done")
    return step, epochs


def steps_done(job: Job, learner: Learner, found: Found) -> tuple[int, list[list[Score]]]:
    """Read the finished steps and the scores of each finished epoch from a checkpoint.

    Raises:
        UserError: they are none, or of an epoch of another length.
    """
    step, per_epoch = whole_number(found, "step"), whole_number(found, "steps_per_epoch", least=1)
    if per_epoch != job.steps_per_epoch:
        raise UserError(
            f"{found.path}: was made with {per_epoch} steps per epoch, the config gives"
            f" {job.steps_per_epoch}; use the same data and batch size, or another"
            " logging.write_tag"
        )
    try:
        epochs = [[Score(*map(float, s)) for s in scores] for scores in found.state["accuracy"]]
    except (KeyError, TypeError, ValueError):
        epochs = []
    if not all(0 <= number <= 100 for scores in epochs for score in scores for number in score):
        raise refusal(found, "accuracy", "holds scores that are not from 0 to 100 %")
    counts = [len(scores) for scores in epochs]
    if counts != [len(learner.names)] * (step // per_epoch):
        expected = f"{len(learner.names)} for each of {step // per_epoch} epochs"
        raise refusal(found, "accuracy", f"holds other scores than the {expected}")
    return step, epochs


def take_up(job: Job, learner: Learner, found: Found) -> None:
    """Load a checkpoint into the learner.

    Raises:
        UserError: it belongs to other weights, classifiers or classes.
    """
    path, state = found
    if state.get("weights") != job.weights:
        raise UserError(
            f"{path}: was trained on other pre-trained weights than logging.pretrain_path;"
            " give those, or choose another logging.write_tag"
        )
    names = [str(name) for name in learner.names]
    if state.get("classifiers") != names:
        others = state.get("classifiers")
        shown = ", ".join(map(str, others)) if isinstance(others, list) else repr(others)
        raise UserError(
            f"{path}: holds the classifiers {shown}, the config asks for"
            f" {', '.join(names)}; give the same, or choose another logging.write_tag"
        )
    known = list(job.class_names)
    classes = state.get("class_names", known)
    if classes != known:
        shown = some(list(map(str, classes))) if isinstance(classes, list) else repr(classes)
        raise UserError(
            f"{path}: was trained on the classes {shown}, the images are of {some(known)}; give the"
            " same, or choose another logging.write_tag"
        )
    learner.load_state(found)
