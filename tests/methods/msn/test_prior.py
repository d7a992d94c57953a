"""The distribution that the mean assignment is drawn to, as the config names it."""

from pathlib import Path

import pytest
import torch

from msn.config.sections.msn import PowerLaw
from msn.methods.msn.prior import read_log_prior
from msn.runtime.errors import UserError


def test_priors(tmp_path: Path) -> None:
    uniform = read_log_prior("uniform", 4).exp()
    torch.testing.assert_close(uniform, torch.full((4,), 0.25, dtype=torch.float64))
    weights = torch.tensor([1.0, 2**-0.5, 3**-0.5], dtype=torch.float64)
    power = read_log_prior(PowerLaw(power_law=0.5), 3).exp()
    torch.testing.assert_close(power, weights / weights.sum())
    file = tmp_path / "prior.txt"
    file.write_text("3\n1 4\n")
    own = read_log_prior(str(file), 3).exp()
    torch.testing.assert_close(own, torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64) / 8)


@pytest.mark.parametrize("content", ["1 2", "1 2 0", "1 2 -3", "1 2 nan", "1 2 x", "1 2 3 4"])
def test_a_prior_file_must_hold_k_positive_weights(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prior.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=r"criterion\.prior .*prior\.txt"):
        read_log_prior(str(file), 3)
