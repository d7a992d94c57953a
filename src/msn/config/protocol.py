"""What a representation is measured with, if nothing else is asked for.

One table for the probe and the report of a run and for the commands: their numbers can be compared.
Nothing is imported here, so that the help of a command need not wait.
"""

from typing import NamedTuple


class Protocol(NamedTuple):
    """Settings of the low-shot table and of k-NN."""

    images_per_class: tuple[int, ...] = (1, 2, 5)
    """Labeled images of each class; a number that the smallest class cannot give is left out."""
    draws: int = 20
    """Of the labeled images, for the mean and spread of each of these columns."""
    seed: int = 0
    """Of the draws."""
    k: int = 20
    """Neighbors that vote."""
    temperature: float = 0.07
    """Of that vote."""


PROTOCOL = Protocol()
