"""Every command ends by naming the files that it wrote, and makes the folders that they need."""

import shlex
from pathlib import Path

import pytest

from msn.cli.main import main
from tests.support.experiments import write_tiny

IMAGES = "data.source=digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The checkpoint of a run, which named its files too."""
    latest = folder / "run" / "tiny-latest.pth.tar"
    if not latest.exists():
        config = write_tiny(folder / "tiny.yaml", folder / "run")
        written = named(f"pretrain --fname {config}", capsys)
        assert latest in written
        left = {path for path in (folder / "run").iterdir() if path.suffix != ".lock"}
        assert set(written) == left
    return latest


def named(command: str, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """What the last lines of a command name."""
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    count = sum(line.startswith("wrote ") for line in lines)
    assert all(line.startswith("wrote ") for line in lines[-count:])
    return [Path(line.removeprefix("wrote ")) for line in lines[-count:]]


@pytest.mark.slow
def test_all_that_is_written_is_named(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, on = tmp_path / "new", f"--weights {weights}"
    for command, paths in {
        f"evaluate knn {on} --k 1 --out {new}/a/knn.json {IMAGES}": ["a/knn.json"],
        f"evaluate logistic {on} --images-per-class 1 --draws 1 --solver torch"
        f" --out {new}/b/l.json --plot {new}/c/p.png {IMAGES}": ["b/l.json", "c/p.png"],
        f"evaluate all {on} --images-per-class 1 --draws 1 --max-images 50"
        f" --out {new}/d/table.md {IMAGES}": ["d/table.md"],
        f"features {on} --out {new}/e/f.safetensors {IMAGES}": [
            *("e/f.safetensors", "e/f.safetensors.cache"),
        ],
        f"subsets draw --out {new}/f --images-per-class 1 2 --draws 1 {IMAGES}": [
            *("f/subsets1/1imgs_class.txt", "f/subsets1/2imgs_class.txt"),
        ],
        f"export {weights} {new}/g/w.pth.tar --to official": ["g/w.pth.tar"],
        f"export {weights} {new}/h/folder --to timm": ["h/folder"],
        f"import {weights} {new}/i/w.pth.tar --as official": ["i/w.pth.tar"],
    }.items():
        before = set(tmp_path.rglob("*"))
        assert named(command, capsys) == [new / path for path in paths]
        left = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
        for path in left:
            assert any(path.is_relative_to(new / written) for written in paths), (command, path)


def test_what_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even before the weights are looked for."""
    (tmp_path / "file").touch()
    for command in (
        f"export none {tmp_path}/file/w.onnx --to onnx",
        f"export none {tmp_path} --to official",
        f"export none {tmp_path} --to huggingface",
        f"import none {tmp_path}/file/w --as official",
        f"features --weights none --out {tmp_path}/file/f.npz",
        f"views --fname configs/quickstart.yaml --image none --out {tmp_path}/file/v.png",
    ):
        assert main(shlex.split(command)) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}" in error
        assert "none:" not in error
        assert "cannot be written" in error or "exists already" in error
