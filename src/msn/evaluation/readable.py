"""Bad images of an evaluation on several processes, found together and reported once.

Whoever meets one goes on, with a black image in its place, to where all processes exchange what
they met: none may stop alone, as the others would wait for it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from msn.data.labeled import Bad, LabeledSet, Transform, batches_in_turn
from msn.data.loader import worker_count, worker_deaths
from msn.data.unreadable import Unreadable
from msn.runtime import collectives
from msn.runtime.errors import PeerLost
from msn.runtime.log import logger

BATCH = 64  # images that a worker looks at before it tells
OPTION = "--skip-bad, or data.skip_bad: true"

Seen = tuple[LabeledSet, Transform]
"""Images, and what is seen of them."""


def find_bad(sets: Sequence[Seen], num_workers: int | str) -> list[list[Bad]]:
    """Find bad images by decoding all, each process its share. All processes call this.

    Args:
        sets: of images, each of which is looked at once.
        num_workers: as `data.num_workers`.

    Returns:
        The bad images of each set.
    """
    workers = worker_count(num_workers, collectives.sharing_cores())
    with worker_deaths():
        own = [
            [
                bad
                for batch in batches_in_turn(
                    *(images, view),
                    batch_size=BATCH,
                    num_workers=workers,
                    rank=collectives.rank(),
                    world_size=collectives.world_size(),
                )
                for bad in batch.bad
            ]
            for images, view in sets
        ]
    parts = collectives.of_all(own)
    return [[bad for part in parts for bad in part[i]] for i in range(len(sets))]


def without(images: LabeledSet, bad: Sequence[Bad]) -> LabeledSet:
    """Leave out the bad images."""
    good = ~np.isin(images.chosen, [one.number for one in bad])
    return replace(images, chosen=images.chosen[good])


def require_readable(met: Sequence[Bad], sets: Sequence[Seen], num_workers: int | str) -> None:
    """Stop if any process has met a bad image. All processes call this, at the same step.

    Args:
        met: by this process.
        sets: in which others are looked for, so that all are told at once.
        num_workers: as `data.num_workers`.

    Raises:
        UserError: on rank 0, names them.
        PeerLost: on the other processes.
    """
    together = [bad for part in collectives.of_all(list(met)) for bad in part]
    if not together:
        return
    if collectives.rank() == 0:
        images = sum(len(one) for one, _ in sets)
        logger.info(f"{together[0].image}; looking for others among {images} images")
    found = [*together, *(bad for one in find_bad(sets, num_workers) for bad in one)]
    if collectives.rank():
        raise PeerLost("rank 0 cannot continue: there are images that cannot be read")
    unreadable = Unreadable(option=OPTION)
    unreadable.meet(bad.image for bad in found)
    unreadable.settle()
