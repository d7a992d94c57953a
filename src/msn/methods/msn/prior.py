"""The prior that the mean assignment is matched to."""

import math

import torch
from torch import Tensor

from msn.config.sections.msn import PowerLaw
from msn.methods.msn.losses import log_prior
from msn.runtime.errors import UserError
from msn.runtime.files import open_regular


def read_log_prior(prior: str | PowerLaw, num_prototypes: int) -> Tensor:
    """Read the log of the prior (K,) that `criterion.prior` names.

    Raises:
        UserError: it names a file that does not hold K positive weights.
    """
    if isinstance(prior, PowerLaw):
        return log_prior(num_prototypes, exponent=prior.power_law)
    if prior == "uniform":
        return log_prior(num_prototypes)
    try:
        with open_regular(prior) as file:
            weights = [float(word) for word in file.read().decode("utf-8").split()]
    except OSError as error:
        raise UserError(
            f"criterion.prior {prior}: cannot be read ({error.strerror}); give uniform, power_law"
            f" or a text file of {num_prototypes} weights"
        ) from None
    except ValueError as error:
        raise UserError(f"criterion.prior {prior}: {error}; give numbers only") from None
    positive = all(weight > 0 and math.isfinite(weight) for weight in weights)
    if len(weights) != num_prototypes or not positive:
        raise UserError(
            f"criterion.prior {prior}: holds {len(weights)} weights; give criterion.num_proto ="
            f" {num_prototypes} of them, each positive"
        )
    return torch.tensor(weights, dtype=torch.float64).log().log_softmax(dim=0)
