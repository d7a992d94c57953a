"""`msn visualize all`: every picture of an encoder, in a folder with a page that shows them."""

import argparse

from msn.cli.arguments import Parser
from msn.cli.options.pictures import PICTURES
from msn.cli.terminal import say_written
from msn.cli.visualize import DRAWN
from msn.cli.weights import Bench, open_bench
from msn.runtime.files import new_folder, prepare_place
from msn.visualize.index import Entry, index_page
from msn.visualize.picture import write

SHOWS = {
    "attention": "Where the class token of the last block looks: each head, their mean, and the"
    " patches that hold most of it.",
    "neighbors": "Images and those whose features are the most alike.",
    "pca": "Three principal components of all patch tokens, as colors.",
    "map": "The features in the plane.",
    "prototypes": "The images that each prototype of MSN stands for, and how often it is used.",
}
"""What each picture shows, in the order of the page."""


def run(options: argparse.Namespace) -> None:
    """Draw all that the encoder has, with the options that each picture has by default."""
    prepare_place(options.out, folder=True)
    bench = open_bench(options)
    missing = _missing(bench)
    entries = [Entry(name, text) for name, text in SHOWS.items() if name not in missing]
    with new_folder(options.out) as folder:
        for name, _ in entries:
            own = argparse.Namespace(**(_defaults(name) | vars(options)))
            found, about = DRAWN[name](bench, own)
            skipped = {"skipped_images": bench.unreadable.found}
            about = {"weights": str(options.weights), **about, **skipped}
            write(folder / f"{name}.png", found, **about)
        notes = [f"Not drawn: {name}, as there {why}." for name, why in missing.items()]
        page = index_page(str(options.weights), entries, notes)
        (folder / "index.html").write_text(page, encoding="utf-8")
    say_written(options.out / "index.html")


def _missing(bench: Bench) -> dict[str, str]:
    """Tell which pictures these weights are not for, and why."""
    missing = {}
    if bench.encoder.model.num_heads is None:
        missing["attention"] = "is no attention"
    if not bench.pretrained.head or bench.pretrained.prototypes is None:
        missing["prototypes"] = "are none"
    return missing


def _defaults(name: str) -> dict[str, object]:
    """Give the options of a picture as they are if none is given."""
    parser = Parser(name, name)
    PICTURES[name](parser)
    return vars(parser.parse_args(["--out", f"{name}.png"]))
