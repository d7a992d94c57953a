"""What several tests of evaluations start from."""

from pathlib import Path

import pytest

from tests.support.labelled import pretrained


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of the digits."""
    return pretrained(tmp_path_factory.mktemp("pretrained"))
