"""The order of the samples: a permutation keyed by seed and epoch, computed where needed.

Nothing is as long as the data set, whatever its length, in any process.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from msn.runtime import keyed

ROUNDS = 8  # of the Feistel network; on the tiniest domains fewer leave a visible bias


@dataclass(frozen=True)
class Order:
    """Which samples the batches of one process hold: each epoch is a new permutation.

    The shares of all ranks together are what one process would take with `world_size` times the
    batch size. What does not fill a batch is left out.

    Attributes:
        length: number of samples.
        batch_size: samples per batch of this process, its share of the global batch.
        steps_per_epoch: at most length // (batch_size * world_size).
        seed: of the permutations.
        rank: which of the `world_size` equal shares of the global batch this process takes.
        world_size: the global batch is the same for any number of processes.
    """

    length: int
    batch_size: int
    steps_per_epoch: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        most = self.length // self.global_batch
        if not 0 < self.steps_per_epoch <= most:
            raise ValueError(
                f"{self.steps_per_epoch} steps of {self.global_batch} from {self.length} samples"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size}")

    @property
    def global_batch(self) -> int:
        """Samples per batch of all processes together."""
        return self.batch_size * self.world_size

    def samples(self, step: int) -> tuple[int, np.ndarray]:
        """Give the epoch of a step and its samples, (batch_size,)."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        start = (inside * self.world_size + self.rank) * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        return epoch, permuted(positions, length=self.length, seed=self.seed, epoch=epoch)


def permuted(positions: np.ndarray, *, length: int, seed: int, epoch: int) -> np.ndarray:
    """Permute `positions` by a permutation of range(length) keyed by (seed, epoch).

    A Feistel network permutes the smallest domain of 4**n >= length numbers; numbers outside the
    range are sent through it again until they fall inside (cycle walking), at most 4 times on
    average.

    Args:
        positions: integers in range(length), of any shape.

    Returns:
        int64, of the same shape.

    Raises:
        IndexError: a position is not in range(length).
    """
    places = np.array(positions, dtype=np.int64)
    if places.size and not 0 <= places.min() <= places.max() < length:
        raise IndexError(f"positions {places.min()} to {places.max()} of {length}")
    half = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    keys = _round_keys(seed, epoch)
    numbers = places.astype(np.uint64)
    outside = np.ones(numbers.shape, dtype=bool)
    while outside.any():
        numbers[outside] = _network(numbers[outside], keys, half)
        outside = numbers >= length
    return numbers.astype(np.int64)


def _network(numbers: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    left, right = numbers >> half, numbers & ((np.uint64(1) << half) - np.uint64(1))
    for key in keys:
        left, right = right, left ^ (_mix(key ^ right) >> (np.uint64(64) - half))
    return left << half | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix 64 bits so that every input bit moves every output bit (Murmur3's finalizer)."""
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)  # modulo 2**64
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: np.ndarray = x ^ x >> np.uint64(33)
    return mixed


@lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> np.ndarray:
    generator = keyed.generator(seed, keyed.Stream.ORDER, epoch)
    return generator.integers(2**64, size=ROUNDS, dtype=np.uint64)
