"""The commands of docs/pictures.md run as written, but for those that need another run."""

import re
import shlex
from pathlib import Path

import pytest

from msn.cli.main import main
from msn.runtime import checkpoint
from tests.support.encoders import random_weights
from tests.support.pictures import photographs, saved

PAGE = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text("utf-8")
COMMANDS = re.findall(r"^python -m msn (visualize (?!reconstruction).*)$", PAGE, flags=re.MULTILINE)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an untrained encoder in the place of the demo's, on few of its images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    file = tmp_path / "runs" / "quickstart" / "quickstart-latest.pth.tar"
    saved(file, random_weights(in_chans=1))
    state = checkpoint.load(file, None)
    checkpoint.save(file, {**state, "config": {"data": {"source": "digits"}}})
    photographs(tmp_path, (40, 56, 3))
    (tmp_path / "0.png").rename("photo.jpg")
    assert COMMANDS
    for command in COMMANDS:
        words = shlex.split(command)
        few = [] if "--images" in words or words[1] == "all" else ["--count", "40"]
        assert main([*words, *few]) == 0, command
        made = Path(words[words.index("--out") + 1])
        assert made.exists()
