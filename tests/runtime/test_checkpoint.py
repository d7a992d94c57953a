"""Checkpoints: atomic, never running code, and clear about what is wrong."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from tests.support.runs import assert_same

STATE: dict[str, Any] = {"target_encoder": {"w": torch.arange(3.0)}, "step": 7}


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    checkpoint.save(path, STATE)
    loaded = checkpoint.load(path)
    assert loaded["step"] == 7
    assert torch.equal(loaded["target_encoder"]["w"], STATE["target_encoder"]["w"])
    assert os.listdir(tmp_path) == ["a.pth.tar"]


@pytest.mark.parametrize(
    "save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))]
)
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "evil.pth.tar"
    save({"target_encoder": Bomb(tmp_path / "pwned")}, path)
    with pytest.raises(UserError, match=r"evil\.pth\.tar") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_a_file_of_a_few_bytes_is_damaged_and_no_code(tmp_path: Path) -> None:
    path = tmp_path / "short.pth.tar"
    for content in (b"", b"x", b"i", b"P", b"hello world", b"\x80", b"\x8e" + b"\xff" * 8):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"short\.pth\.tar: truncated, damaged, or not a check"):
            checkpoint.load(path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "pwned"), protocol))
        with pytest.raises(UserError, match="holds pickled code, which is never run"):
            checkpoint.load(path)
    assert not (tmp_path / "pwned").exists()


def test_what_is_refused_says_that_it_is_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth.tar"
    torch.save({"target_encoder": Bomb(tmp_path / "pwned")}, path)
    with pytest.raises(UserError, match="holds pickled code, which is never run"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("weights", [1, 50_000])
def test_truncated_files_are_named(tmp_path: Path, share: float, weights: int) -> None:
    path = tmp_path / "cut.pth.tar"
    checkpoint.save(path, {**STATE, "more": torch.zeros(weights)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cut\.pth\.tar: truncated, damaged, or not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}.", b"PK\x03\x04", bytes(range(100))])
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.pth\.tar") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pth.tar")
    with pytest.raises(UserError, match=r"is a folder; name a checkpoint in it, or .* msn import"):
        checkpoint.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        checkpoint.save(path, {"target_encoder": lambda: None})  # cannot be pickled
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth.tar"]


def test_a_wrong_place_is_told_apart_from_a_full_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"b\.pth: cannot be written .*; create the folder, or"):
        checkpoint.save(tmp_path / "a" / "b.pth", STATE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    (tmp_path / "a.pth.tar.tmp").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"a\.pth\.tar: cannot be written .*before is intact; free some space, or"
    ):
        checkpoint.save(path, STATE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth.tar"]


def test_newest_falls_back_and_says_so(tmp_path: Path, said: list[str]) -> None:
    assert checkpoint.load_newest(tmp_path, "run") is None
    for epochs in (2, 10):
        checkpoint.save(checkpoint.epoch_path(tmp_path, "run", epochs), {**STATE, "step": epochs})
    checkpoint.save(checkpoint.epoch_path(tmp_path, "run-b", 99), STATE)  # of another run
    latest = checkpoint.latest_path(tmp_path, "run")
    latest.write_bytes(b"broken")
    found = checkpoint.load_newest(tmp_path, "run")
    assert found is not None
    assert found.state["step"] == 10
    assert len(said) == 1
    assert "run-latest.pth.tar: truncated" in said[0]
    assert "resuming from run-ep10.pth.tar" in said[0]
    assert (tmp_path / "run-latest.pth.tar.damaged").read_bytes() == b"broken"


def test_nothing_is_touched_when_no_checkpoint_can_be_read(tmp_path: Path) -> None:
    latest = checkpoint.latest_path(tmp_path, "run")
    latest.write_bytes(b"broken")
    with pytest.raises(UserError, match="move it away to start this run from the beginning"):
        checkpoint.load_newest(tmp_path, "run")
    assert latest.read_bytes() == b"broken"


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """It is damage, or it is somewhere where it does not matter."""
    path = tmp_path / "a.pth.tar"
    state = {"target_encoder": {"w": torch.randn(40, 5)}, "step": 7, "config": {"a": "b"}}
    checkpoint.save(path, state)
    content = path.read_bytes()
    damaged: list[str] = []
    for bit in random.Random(0).sample(range(8 * len(content)), 200):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert_same(checkpoint.load(path), state)
        except UserError as error:
            damaged.append(str(error))
    assert len(damaged) > 100
    assert all(text.startswith(f"{path}: ") for text in damaged)


def test_tensors_that_their_digest_is_not_of_are_damage(tmp_path: Path, said: list[str]) -> None:
    """Sums of the archive that fit do not help; a file of before, without digest, is read."""
    path, latest = tmp_path / "a.pth.tar", checkpoint.latest_path(tmp_path, "run")
    checkpoint.save(path, STATE)
    written = torch.load(path, weights_only=True)
    written["target_encoder"]["w"][1] = -7.7e36
    torch.save(written, latest)
    with pytest.raises(UserError, match=r"run-latest\.pth\.tar: truncated, damaged, or not a"):
        checkpoint.load(latest)
    checkpoint.save(checkpoint.epoch_path(tmp_path, "run", 3), {**STATE, "step": 3})
    found = checkpoint.load_newest(tmp_path, "run")
    assert found is not None
    assert (found.path.name, found.state["step"]) == ("run-ep3.pth.tar", 3)
    assert len(said) == 1
    assert (tmp_path / "run-latest.pth.tar.damaged").exists()
    torch.save({**STATE, "digest": "of another program"}, path)
    assert checkpoint.load(path)["step"] == 7
    torch.save(STATE, path)
    assert_same(checkpoint.load(path), STATE)


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    before = module.weight.detach().clone()
    weights = {"weight": torch.zeros(4, 2), "extra": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        checkpoint.load_weights(module, weights, path=tmp_path / "x", key="encoder")
    for part in ("bias missing", "extra unknown", "weight is (4, 2) and must be (3, 2)"):
        assert part in str(error.value)
    assert torch.equal(module.weight.detach(), before)


@pytest.mark.parametrize("weights", [None, [1], {"weight": 3}, torch.zeros(2)])
def test_what_is_no_state_dict_is_named(tmp_path: Path, weights: Any) -> None:
    with pytest.raises(UserError, match="'encoder' is not a state dict"):
        checkpoint.load_weights(nn.Linear(2, 3), weights, path=tmp_path / "x", key="encoder")


def test_wrapper_prefix_is_dropped(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    weights = {f"module.{name}": value + 1 for name, value in module.state_dict().items()}
    checkpoint.load_weights(module, weights, path=tmp_path / "x", key="encoder")
    assert torch.equal(module.weight.detach(), weights["module.weight"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.prepare_folder(tmp_path / "run")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run: cannot be written"):
        checkpoint.prepare_folder(tmp_path / "run")
