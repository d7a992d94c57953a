"""Who am I among the processes. The only module that reads rank variables."""

import os

from msn.errors import UserError

_SIZE_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")


def require_single_process() -> None:
    """Refuse to start as one of several processes: each would train alone and overwrite the rest.

    Raises:
        UserError: the environment says that there are other processes.
    """
    for name in _SIZE_VARIABLES:
        size = os.environ.get(name, "1")
        if size != "1":
            raise UserError(
                f"environment variable {name}={size}: this version trains in one process;"
                f" start a single process, or unset {name}"
            )
