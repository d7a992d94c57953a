"""What is kept is used while it is true, and made again when it is not."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn.data import mapped
from msn.data.mapped import Arrays, Mapped, Watch, cached, pack, unpack
from msn.runtime.errors import RunError


class Counted:
    """Builds the arrays of a file's numbers, and counts how often."""

    def __init__(self, file: Path) -> None:
        self.file, self.count = file, 0

    def __call__(self, watch: Watch) -> Arrays:
        self.count += 1
        watch(str(self.file))
        numbers = np.array(self.file.read_text().split(), dtype=np.int64)
        return {
            "numbers": numbers,
            "half": numbers[:0].astype(np.float32),
            "square": numbers[:, None],
        }

    def get(self) -> list[int]:
        return cached(f"numbers {self.file}", self)["numbers"].tolist()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Of a file that has long been as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "SETTLED_NS", 0)
    file = tmp_path / "numbers"
    file.write_text("1 2 3")
    time.sleep(0.02)  # more than a tick of the file system's clock
    return Counted(file)


def kept(tmp_path: Path) -> Path:
    [path] = (tmp_path / "cache/msn").iterdir()
    return path


def test_is_built_once(build: Counted) -> None:
    assert [build.get(), build.get(), build.get()] == [[1, 2, 3]] * 3
    assert build.count == 1


def test_arrays_are_as_they_were(build: Counted) -> None:
    cached("a", build)
    found = cached("a", build)
    assert isinstance(found, Mapped)
    assert found["half"].dtype == np.float32
    assert found["half"].shape == (0,)
    assert found["square"].shape == (3, 1)
    assert not found["square"].flags.writeable


def rewrite(file: Path) -> None:
    file.write_text("4 5 6")


def rewrite_and_set_the_time_back(file: Path) -> None:
    before = file.stat()
    file.write_text("4 5 6")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("4 5 6")
    other.replace(file)


@pytest.mark.parametrize("change", [rewrite, rewrite_and_set_the_time_back, replace])
def test_is_built_again_after_a_change(build: Counted, change: Callable[[Path], None]) -> None:
    assert build.get() == [1, 2, 3]
    change(build.file)
    assert build.get() == [4, 5, 6]
    assert build.count == 2


def test_what_changed_just_before_is_not_trusted(
    build: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SETTLED_NS", 3600 * 10**9)
    assert [build.get(), build.get()] == [[1, 2, 3]] * 2
    assert build.count == 2


def test_what_vanished_is_noticed(build: Counted) -> None:
    build.get()
    build.file.unlink()
    with pytest.raises(FileNotFoundError):  # from the building
        build.get()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_built_again(build: Counted, tmp_path: Path, data: st.DataObject) -> None:
    build.get()
    whole = kept(tmp_path).read_bytes()
    length = data.draw(st.integers(0, len(whole) - 64))
    kept(tmp_path).write_bytes(data.draw(st.sampled_from([whole[:length], b"x" + whole])))
    build.count = 0
    assert build.get() == [1, 2, 3]
    assert build.count == 1


def test_without_a_cache_folder_it_is_in_memory(build: Counted, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, in which none can lie")
    found = cached("a", build)
    assert not isinstance(found, Mapped)
    assert found["numbers"].tolist() == [1, 2, 3]


def test_nothing_else_is_left_behind(build: Counted, tmp_path: Path) -> None:
    for _ in range(3):
        build.get()
        rewrite(build.file)
    assert kept(tmp_path).suffix == ".arrays"
    assert kept(tmp_path).stat().st_mode & 0o077 == 0


def total(arrays: Arrays) -> int:
    return int(arrays["numbers"].sum())


def test_travels_as_a_path(build: Counted) -> None:
    build.file.write_text(" ".join(map(str, range(100_000))))
    found = cached("many", build)
    assert len(pickle.dumps(found)) < 1000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(total, found).result() == sum(range(100_000))


def test_does_not_arrive_as_another(build: Counted) -> None:
    sent = pickle.dumps(cached("a", build))
    rewrite(build.file)
    cached("a", build)
    with pytest.raises(RunError, match="was replaced while workers were starting"):
        pickle.loads(sent)


@given(st.lists(st.binary(max_size=9)))
def test_texts_come_out_as_they_went_in(texts: list[bytes]) -> None:
    packed, ends = pack(texts)
    assert [os.fsencode(unpack(packed, ends, i)) for i in range(len(texts))] == texts
    assert packed.nbytes == sum(map(len, texts))
