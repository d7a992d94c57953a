"""Where files go, and who may read them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from msn.runtime.errors import UserError
from msn.runtime.files import new_folder, prepare_place, replacing

TENSORS = {"a": torch.zeros(2)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    """Also those of safetensors, which by itself writes them for their owner only."""
    with replacing(tmp_path / "a.safetensors") as temporary:
        save_file(TENSORS, temporary)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("text")
    with new_folder(tmp_path / "folder") as temporary:
        save_file(TENSORS, temporary / "a.safetensors")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    for name in ("a.safetensors", "a.txt", "folder/a.safetensors"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name


def test_a_missing_folder_is_created_or_refused(tmp_path: Path) -> None:
    prepare_place(tmp_path / "new" / "er" / "file")
    assert list((tmp_path / "new" / "er").iterdir()) == []
    (tmp_path / "file").touch()
    for path, folder, reason in (
        (tmp_path / "new", False, "it is a folder: name a file in it"),
        (tmp_path / "file" / "x", False, "remove the file that stands in the place of its folder"),
        (tmp_path / "file", True, "exists already; remove it or choose another place"),
        (tmp_path / "new", True, "exists already"),
        (Path("/proc/none/x"), False, "create the folder"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            prepare_place(path, folder=folder)
        assert str(caught.value).startswith(f"{path}: ")
    prepare_place(tmp_path / "file")  # is replaced
    prepare_place(tmp_path / "new" / "er", folder=True)  # is empty
