"""Settings of every test run."""

import os

import pytest
import torch

# The tensors of the tests are tiny: a second thread only costs, and much so on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep indices of test images out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
