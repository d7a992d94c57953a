"""Releases: a run that stops, is released, and goes on elsewhere as if it had not."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from msn.cli import main as cli
from msn.config.load import load_config
from msn.interop import anything, release
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.pretrain import pretrain
from tests.support.encoders import same
from tests.support.experiments import write_tiny

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
    weights = anything.read(out)
    state = checkpoint.load(runs / "half" / "tiny-latest.pth.tar")
    assert same(weights.encoder | weights.head, state["target_encoder"])
    assert weights.normalisation.mean == pytest.approx(state["mean"])


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


def test_weights_alone_are_no_release(runs: Path, tmp_path: Path) -> None:
    state = checkpoint.load(runs / "half" / "tiny-latest.pth.tar")
    bare = tmp_path / "a-latest.pth.tar"
    torch.save({"target_encoder": state["target_encoder"]}, bare)
    with pytest.raises(UserError, match="has no encoder, prototypes, opt, step, config"):
        release.write(tmp_path / "out", bare)
    torch.save(state, bare)
    with pytest.raises(UserError, match=r"a-config\.yaml: missing"):
        release.write(tmp_path / "out", bare)
    with pytest.raises(UserError, match=r"not TAG-latest\.pth\.tar"):
        release.write(tmp_path / "out", tmp_path / "a.pth.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a-latest.pth.tar"]
