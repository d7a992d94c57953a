"""`msn evaluate knn`: nearest neighbours on frozen features, from the train to the val split."""

import argparse

from msn.cli.weights import add_options, add_taps, beside, open_bench, taps_of
from msn.evaluation.knn import Setting, knn_sweep
from msn.runtime.errors import UserError
from msn.runtime.files import write_json

VOTES = ("weighted", "plain")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    add_taps(parser)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20], help="(default 10 20)")
    parser.add_argument("--vote", nargs="+", choices=VOTES, default=VOTES, help="(default both)")
    parser.add_argument(
        "--temperature", type=float, default=0.07, help="of the weighted vote (default 0.07)"
    )


def run(options: argparse.Namespace) -> None:
    """Print a table, and write it as JSON beside the weights."""
    if min(options.k) < 1:
        raise UserError(f"--k {min(options.k)}: must be at least 1")
    if not options.temperature > 0:
        raise UserError(f"--temperature {options.temperature:g}: must be above 0")
    bench = open_bench(options)
    taps, device = taps_of(options), bench.encoder.devices[0]
    # Masked or not, the held-out images are seen whole.
    train, val = bench.labelled()
    known, asked = bench.features(train, taps=taps), bench.features(val, taps=taps._replace(mask=0))
    assert known.labels is not None
    assert asked.labels is not None
    settings: list[Setting] = [
        (k, options.temperature if vote == "weighted" else None)
        for k in options.k
        for vote in options.vote
    ]
    found = knn_sweep(
        known.features.to(device),
        known.labels.to(device),
        asked.features.to(device),
        asked.labels.to(device),
        settings=settings,
    )
    print("| k | vote | top-1 % |\n| --- | --- | --- |")
    rows = []
    for (k, temperature), result in found.items():
        vote = "plain" if temperature is None else f"weighted, {temperature:g}"
        print(f"| {k} | {vote} | {result.top1:.1f} |")
        rows.append({"k": k, "temperature": temperature, "top1": result.top1})
    path = beside(options.weights, "knn.json")
    write_json(path, {"unit": "percent", "results": rows})
    print(f"written: {path}")
