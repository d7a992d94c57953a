"""The work of the commands from Python: `msn.pretrain` and `msn.evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from msn.config.kinds import Config, FinetuneConfig, LinearConfig, RunFile
from msn.config.load import load
from msn.evaluation.accuracy import Result
from msn.methods import Method
from msn.runtime import checkpoint
from msn.runtime.devices import choose_device
from msn.train import learning, pretraining

File = TypeVar("File", bound=RunFile)


def pretrain(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    method: type[Method] | None = None,
) -> Path:
    """Pre-train in this process, or resume a run that was interrupted.

    What it says goes to the logger "msn": `logging.basicConfig(level="INFO")` shows it.

    Args:
        config: a config, or the YAML file of one.
        overrides: `section.key=value` texts, for a file.
        device: as `--devices` of the command: auto, cpu, cuda, cuda:1 ...
        method: a method of one's own; None takes the one that `meta.method` names.

    Returns:
        The checkpoint, which `msn.load_encoder` takes.

    Raises:
        UserError, RunError, Interrupted: of `msn.runtime.errors`, as the command says them.
    """
    chosen = _loaded(Config, config, overrides)
    pretraining.pretrain(chosen, choose_device(device, 0), method)
    return checkpoint.latest_path(Path(chosen.logging.folder), chosen.logging.write_tag)


def evaluate(config: LinearConfig | FinetuneConfig, *, device: str = "auto") -> Result:
    """Train what a config of linear evaluation or fine-tuning describes, and measure it.

    Args:
        config: such as `msn.config.load.load(LinearConfig, "linear.yaml")` gives.
        device: as for `pretrain`.

    Returns:
        Top-1 and top-5 accuracy of each classifier, in percent, in the last and the best epoch.

    Raises:
        UserError, RunError, Interrupted: as `pretrain`.
    """
    place = choose_device(device, 0)
    if isinstance(config, LinearConfig):
        return learning.linear_evaluation(config, place)
    return learning.finetune(config, place)


def _loaded(kind: type[File], config: File | str | Path, overrides: Sequence[str]) -> File:
    return config if isinstance(config, kind) else load(kind, Path(str(config)), overrides)
