"""Settings of every test run."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from msn.runtime import log
from tests.support.labeled import pretrained

# The tensors of the tests are tiny: a second thread only costs, and much so on a busy machine.
torch.set_num_threads(1)


LONGEST = ("cluster", "processes", "slow")
"""Marks, the longest tests first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left with one at the end."""
    place: dict[Path, int] = {}
    for item in items:
        marks = [LONGEST.index(mark.name) for mark in item.iter_markers() if mark.name in LONGEST]
        place[item.path] = min([*marks, place.get(item.path, len(LONGEST))])
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep indices of test images out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of the digits, in a file."""
    return pretrained(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(autouse=True, scope="session")
def _shown() -> None:
    """Print what is logged, as the command line does."""
    log.show()


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Collect what is logged."""
    handler = _Lines()
    log.logger.addHandler(handler)
    yield handler.lines
    log.logger.removeHandler(handler)
