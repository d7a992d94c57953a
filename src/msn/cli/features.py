"""`msn features`: write the features of a frozen encoder to a file."""

import argparse

from msn.cli.terminal import say_written
from msn.cli.weights import open_bench, taps_of
from msn.evaluation.features import check_name, write
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place


def run(options: argparse.Namespace) -> None:
    """Compute features, resuming where an interrupted run stopped, and write them to one file."""
    check_name(options.out)
    prepare_place(options.out)
    bench = open_bench(options)
    cache = bench.cache or options.out.with_name(f"{options.out.name}.cache")
    bench = bench._replace(cache=cache)
    source = bench.open(options.split)
    found = bench.extract(source, taps=taps_of(options))
    bench.settle()
    if not len(found.features):
        raise UserError(f"the {options.split} split holds no images; check data.root_path")
    write(options.out, found, classes=source.classes(), skipped=list(bench.unreadable.found))
    rows, width = found.features.shape
    labels = "with labels" if found.labels is not None else "without labels"
    print(f"{rows} x {width}, {labels}")
    say_written(options.out, cache)
