"""Top-1 and top-5 accuracy, counting each image once over all processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from msn.data.labeled import Batch
from msn.runtime import collectives
from msn.runtime.files import write_json


class Score(NamedTuple):
    """Accuracy of one classifier, in percent. With fewer than 5 classes, top5 is of them all."""

    top1: float
    top5: float


class Result(NamedTuple):
    """Scores of each classifier, by name, after the last epoch and after the best one.

    The best epoch is that in which one of the classifiers was better than any in another: chosen
    on the images that it is measured with, it flatters.
    """

    last: dict[str, Score]
    best: dict[str, Score]
    best_epoch: int

    def __str__(self) -> str:
        width = max(map(len, self.best))
        lines = [f"{'':{width}}  top-1  top-5  last epoch's top-1"]
        for name, score in sorted(self.best.items(), key=lambda item: -item[1].top1):
            last = self.last[name].top1
            lines.append(f"{name:{width}}  {score.top1:5.2f}  {score.top5:5.2f}  {last:5.2f}")
        return "\n".join(lines)

    def write(self, path: Path, skipped: Mapping[str, str]) -> None:
        """Write the scores as JSON, with the images left out and the reason for each."""
        content = {
            "best_epoch": self.best_epoch,
            "best": {name: score._asdict() for name, score in self.best.items()},
            "last": {name: score._asdict() for name, score in self.last.items()},
            "skipped_images": dict(skipped),
        }
        write_json(path, content)


@torch.no_grad()
def accuracy(
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    normalize: Callable[[Tensor], Tensor],
) -> list[Score]:
    """Measure top-1 and top-5 accuracy of several classifiers over all processes.

    Args:
        logits: (B, C, S, S) -> (classifiers, B, classes).
        batches: this process's share.
        normalize: uint8 (B, S, S, C) to the input of `logits`.
    """
    counts: Tensor | float = 0.0
    for batch in batches:
        scores = logits(normalize(batch.images)).float()
        counts = counts + _hits(scores, batch.labels.to(scores.device, non_blocking=True))
    counts = torch.as_tensor(counts)
    return _scores(collectives.gather(counts[None]).sum(dim=0))


def best_epoch(epochs: Sequence[Sequence[Score]]) -> int:
    """Find the epoch, from 1, with the best top-1 of any classifier; the first if tied."""
    tops = [max(score.top1 for score in scores) for scores in epochs]
    return 1 + tops.index(max(tops))


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Count top-1 and top-5 hits of each classifier, then all labels: (classifiers + 1, 2)."""
    five = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    # A classifier that diverged scores nothing: topk gives an order of its own to nan.
    five &= logits.isfinite().all(dim=-1, keepdim=True)
    hits = torch.stack([five[..., 0].sum(dim=-1), five.sum(dim=(-2, -1))], dim=-1)
    return torch.cat([hits, hits.new_full((1, 2), len(labels))]).double()


def _scores(counts: Tensor) -> list[Score]:
    shares = 100 * counts[:-1] / counts[-1]
    return [Score(top1, top5) for top1, top5 in shares.tolist()]
