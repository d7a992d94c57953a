"""Settings of every test run."""

import os
from pathlib import Path

import pytest
import torch

from tests.support.labelled import pretrained

# The tensors of the tests are tiny: a second thread only costs, and much so on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep indices of test images out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of the digits, in a file."""
    return pretrained(tmp_path_factory.mktemp("pretrained"))
