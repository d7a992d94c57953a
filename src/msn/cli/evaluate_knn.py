"""`msn evaluate knn`: nearest neighbors on frozen features, from the train to the val split."""

import argparse

from msn.cli.terminal import say_written
from msn.cli.weights import open_bench, result_path, taps_of
from msn.evaluation.knn import Setting, knn_sweep
from msn.runtime.files import write_json


def run(options: argparse.Namespace) -> None:
    """Print a table of k-NN accuracies and write it as JSON beside the weights."""
    bench = open_bench(options)
    path = result_path(options, "knn.json")
    taps, device = taps_of(options), bench.encoder.devices[0]
    # Masked or not, the held-out images are seen whole.
    splits = bench.labeled()
    known = bench.features(splits.train, taps=taps)
    asked = bench.features(splits.val, taps=taps._replace(mask=0))
    bench.settle()
    settings: list[Setting] = [
        (k, options.temperature if vote == "weighted" else None)
        for k in options.k
        for vote in options.vote
    ]
    found = knn_sweep(
        *(tensor.to(device) for tensor in (*known, *asked)),
        settings=settings,
    )
    print("| k | vote | top-1 % |\n| --- | --- | --- |")
    rows = []
    for (k, temperature), result in found.items():
        vote = "plain" if temperature is None else f"weighted, {temperature:g}"
        print(f"| {k} | {vote} | {result.top1:.1f} |")
        rows.append({"k": k, "temperature": temperature, "top1": result.top1})
    skipped = bench.unreadable.found
    write_json(path, {"unit": "percent", "results": rows, "skipped_images": skipped})
    say_written(path)
