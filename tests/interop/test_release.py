"""Releases: a run that stops, is released, and goes on elsewhere as if it had not."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from msn.cli import main as cli
from msn.config.load import load_config
from msn.interop import reading, release
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.pretraining import pretrain
from tests.support.encoders import same
from tests.support.experiments import changed, write_tiny
from tests.support.simmim import TINY as SIMMIM

CPU = torch.device("cpu")


def run(config: Path, *overrides: str) -> None:
    pretrain(load_config(config, overrides), CPU)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: two epochs. `half`: the first of them, as it is after an interruption."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("whole", "half"):
        config = write_tiny(folder / f"{name}.yaml", folder / name, optimization__epochs=2)
        run(config, "logging.checkpoint_freq=1")
    os.replace(folder / "half" / "tiny-ep1.pth.tar", folder / "half" / "tiny-latest.pth.tar")
    (folder / "half" / "tiny-ep2.pth.tar").unlink()
    return folder


@pytest.mark.slow
def test_a_released_run_goes_on_bit_for_bit(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest, out, mine = runs / "half" / "tiny-latest.pth.tar", tmp_path / "out", tmp_path / "mine"
    assert cli.main(["export", str(latest), "--to", "release", str(out)]) == 0
    assert cli.main(["import", str(out), "--as", "run", str(mine)]) == 0
    assert (mine / latest.name).read_bytes() == latest.read_bytes()
    assert cli.main(["pretrain", "--fname", str(mine / "tiny-config.yaml")]) == 0
    assert "resumed from" in capsys.readouterr().out
    theirs = checkpoint.load(runs / "whole" / "tiny-latest.pth.tar")
    ours = checkpoint.load(mine / "tiny-latest.pth.tar")
    assert ours["step"] == theirs["step"]
    for key in ("encoder", "target_encoder"):
        assert same(ours[key], theirs[key])
    assert torch.equal(ours["prototypes"], theirs["prototypes"])
    for index, moments in theirs["opt"]["state"].items():
        assert same(ours["opt"]["state"][index], moments)
    rows = [path.read_text().count("\n") for path in (mine / "tiny_r0.csv",)]
    assert rows == [(runs / "whole" / "tiny_r0.csv").read_text().count("\n")]


@pytest.mark.slow
def test_a_run_of_another_method_is_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = changed(SIMMIM, tmp_path / "run", logging__checkpoint_freq_itr=5)
    config = tmp_path / "simmim.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    run(config)
    latest, out, mine = tmp_path / "run/tiny-latest.pth.tar", tmp_path / "out", tmp_path / "mine"
    assert cli.main(["export", str(latest), "--to", "release", str(out)]) == 0
    assert cli.main(["import", str(out), "--as", "run", str(mine)]) == 0
    assert cli.main(["pretrain", "--fname", str(mine / "tiny-config.yaml")]) == 0
    assert "resumed from" in capsys.readouterr().out
    state = checkpoint.load(latest)
    del state["decoder"]
    checkpoint.save(tmp_path / "run/other-latest.pth.tar", state)
    with pytest.raises(UserError, match="has no decoder, so training cannot resume from it"):
        release.write(tmp_path / "again", tmp_path / "run/other-latest.pth.tar")


def test_what_a_release_holds(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release.write(out, runs / "half" / "tiny-latest.pth.tar")
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("README.md", "SHA256SUMS", "tiny-config.yaml", "tiny-latest.pth.tar"),
        *("tiny-probe.csv", "tiny_r0.csv"),
    }
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        names.discard(name)
    assert names == {"SHA256SUMS"}
    assert "after 40 steps" in (out / "README.md").read_text()
    weights = reading.read(out)
    state = checkpoint.load(runs / "half" / "tiny-latest.pth.tar")
    assert same(weights.encoder | weights.head, state["target_encoder"])
    assert weights.normalization.mean == pytest.approx(state["mean"])


def test_changed_and_missing_files_are_listed(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release.write(out, runs / "half" / "tiny-latest.pth.tar")
    with (out / "tiny-config.yaml").open("a") as file:
        file.write("#")
    (out / "tiny_r0.csv").unlink()
    with pytest.raises(UserError) as error:
        release.unpack(out, tmp_path / "mine")
    assert "tiny-config.yaml has another SHA-256; tiny_r0.csv is missing" in str(error.value)
    assert not (tmp_path / "mine").exists()
    with (out / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../secret\n")
    with pytest.raises(UserError, match="not a line of a hash and a file name"):
        release.unpack(out, tmp_path / "mine")


def sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{release.sha256(folder / name)}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_bad_release_leaves_nothing_behind(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong is found before anything is written."""
    out, mine = tmp_path / "out", tmp_path / "new" / "mine"
    release.write(out, runs / "half" / "tiny-latest.pth.tar")
    file, config = out / "tiny-latest.pth.tar", out / "tiny-config.yaml"
    state, text = checkpoint.load(file), config.read_text()
    prototypes = torch.full_like(state["prototypes"], torch.nan)
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: config.write_text("data: [1"), "tiny-config.yaml"),
        (lambda: config.write_text(text + "\nnothing: 1\n"), "nothing"),
        (
            lambda: config.rename(out / "other-config.yaml"),
            "lists no tiny-config.yaml; download",
        ),
        (lambda: torch.save(state | {"step": "x"}, file), "step is x, must be a number of steps"),
        (lambda: torch.save({"target_encoder": {}}, file), "has no config, opt, step"),
        (lambda: torch.save(state | {"prototypes": prototypes}, file), "not finite"),
        (lambda: file.write_bytes(file.read_bytes()[:-999]), "damaged"),
        (lambda: file.rename(out / "other.pth.tar"), "not TAG-latest.pth.tar or TAG-epN.pth.tar"),
        (file.unlink, "lists 0 checkpoints, must be one"),
    ]
    for change, problem in changes:
        change()
        sums(out)
        assert cli.main(["import", str(out), "--as", "run", str(mine)]) == 2
        said = capsys.readouterr().err
        assert problem in said
        assert said.count("\n") == 1
        assert not mine.parent.exists()
        for path in out.iterdir():
            path.unlink()
        torch.save(state, file)
        config.write_text(text)
    for content in ("", "\n"):
        (out / "SHA256SUMS").write_text(content)
        assert cli.main(["import", str(out), "--as", "run", str(mine)]) == 2
        assert "SHA256SUMS" in capsys.readouterr().err
    os.remove(out / "SHA256SUMS")
    os.mkfifo(out / "SHA256SUMS")
    assert cli.main(["import", str(out), "--as", "run", str(mine)]) == 2
    assert "neither a file nor a folder" in capsys.readouterr().err
    assert not mine.parent.exists()


def test_weights_alone_are_no_release(runs: Path, tmp_path: Path) -> None:
    state = checkpoint.load(runs / "half" / "tiny-latest.pth.tar")
    bare = tmp_path / "a-latest.pth.tar"
    torch.save({"target_encoder": state["target_encoder"]}, bare)
    with pytest.raises(UserError, match="has no config, opt, step"):
        release.write(tmp_path / "out", bare)
    torch.save(state, bare)
    with pytest.raises(UserError, match=r"a-config\.yaml: missing"):
        release.write(tmp_path / "out", bare)
    with pytest.raises(UserError, match=r"not TAG-latest\.pth\.tar"):
        release.write(tmp_path / "out", tmp_path / "a.pth.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a-latest.pth.tar"]
