"""The whole state of a run in one folder with hashes, to be resumed elsewhere."""

import hashlib
import json
import re
import shutil
from pathlib import Path

from msn.config.load import load_config, stated_config
from msn.interop import card, official
from msn.interop.tensorfile import require_file
from msn.methods import method_of
from msn.runtime import checkpoint
from msn.runtime.checkpoint import State, listed, shown
from msn.runtime.errors import UserError
from msn.runtime.files import new_folder, replacing, writing

SUMS = "SHA256SUMS"
NEEDED = ("config", "opt", "step")  # beside the weights of the method
EXTRAS = ("{tag}_r*.csv", "{tag}-probe.csv", "{tag}-report.*", "{tag}-reconstruction.*")


def write(folder: Path, path: Path) -> None:
    """Copy a checkpoint with its config and log into a new folder, with a card and hashes.

    Args:
        folder: to be made.
        path: `TAG-latest.pth.tar` or `TAG-epN.pth.tar` of a run, in the folder of that run.

    Raises:
        UserError: it is no full checkpoint of this project, or its config is not beside it.
    """
    tag, state = _tag(path), _whole_state(path)
    weights = official.from_state(state, path=path)
    config = checkpoint.config_path(path.parent, tag)
    if not config.exists():
        raise UserError(f"{config}: missing; the config of the run has to be beside its checkpoint")
    logs = [log for pattern in EXTRAS for log in sorted(path.parent.glob(pattern.format(tag=tag)))]
    readme = card.release(weights, tag, state["step"])
    with new_folder(folder) as temporary, writing(folder):
        for file in (path, config, *logs):
            shutil.copyfile(file, temporary / file.name)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        names = sorted(file.name for file in temporary.iterdir())
        lines = [f"{sha256(temporary / name)}  {name}\n" for name in names]
        (temporary / SUMS).write_text("".join(lines), encoding="utf-8")


def unpack(release: Path, folder: Path) -> Path:
    """Unpack a release into the folder of a run, to resume it there; give the path of its config.

    The config names that folder as its `logging.folder`.

    Raises:
        UserError: a file is missing or is not the one that was released, or the run cannot go on
            from it. Nothing is written then.
    """
    names, path = verify(release), checkpoint_in(release)
    config = checkpoint.config_path(release, _tag(path))
    if config.name not in names:
        raise UserError(f"{release / SUMS}: lists no {config.name}; download the release again")
    text = load_config(config, [f"logging.folder={json.dumps(str(folder))}"]).dump_yaml()
    official.from_state(_whole_state(path), path=path)
    with new_folder(folder) as temporary, writing(folder):
        for name in names:
            shutil.copyfile(release / name, temporary / name)
        with replacing(temporary / config.name) as file:
            file.write_text(text, encoding="utf-8")
    return folder / config.name


def checkpoint_in(release: Path) -> Path:
    """Find the checkpoint of a release, after checking the hashes of all files.

    Raises:
        UserError: as `verify` does, or there is none or more than one.
    """
    names = [name for name in verify(release) if name.endswith(".pth.tar")]
    if len(names) != 1:
        raise UserError(f"{release / SUMS}: lists {len(names)} checkpoints, must be one")
    return release / names[0]


def verify(release: Path) -> list[str]:
    """Check that the files of a release have the hashes listed there, and give their names.

    Raises:
        UserError: they have not; all that is wrong is listed.
    """
    try:
        require_file(release / SUMS)
        lines = (release / SUMS).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{release / SUMS}: cannot be read; download the release again") from None
    problems, names = [], []
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line)
        if not match:
            raise UserError(
                f"{release / SUMS}: not a line of a hash and a file name: {shown(line)!r}"
            )
        expected, name = match.groups()
        names.append(name)
        if not (release / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256(release / name) != expected:
            problems.append(f"{name} has another SHA-256")
    if problems:
        raise UserError(f"{release}: {listed(problems)}; download the release again")
    return names


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _whole_state(path: Path) -> State:
    """Read a checkpoint, and refuse one that training cannot resume from."""
    state = checkpoint.load(path)
    missing = [key for key in NEEDED if key not in state]
    if not missing:
        method = method_of(stated_config(state["config"], f"{path}, config"))
        missing = [key for key in method.CHECKPOINT if key not in state]
    if missing:
        raise UserError(
            f"{path}: has no {', '.join(missing)}, so training cannot resume from it;"
            " export to official what holds weights only"
        )
    if type(state["step"]) is not int:
        raise UserError(f"{path}: step is {shown(state['step'])}, must be a number of steps")
    return state


def _tag(path: Path) -> str:
    match = re.fullmatch(r"(.+)-(?:latest|ep\d+)\.pth\.tar", path.name)
    if not match:
        raise UserError(f"{path}: not TAG-latest.pth.tar or TAG-epN.pth.tar of a run; give one")
    return match[1]
