"""`msn subsets fetch`: the official lists of labelled ImageNet images."""

import argparse
from pathlib import Path

from msn.data.subsets import FOLDER, fetch, official_url


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--folder", type=Path, default=Path(FOLDER), help=f"gets the lists (default {FOLDER})"
    )
    parser.add_argument(
        "--url", default=official_url(), help="folder of the lists (default: official repository)"
    )


def run(options: argparse.Namespace) -> None:
    """Get all ten, check their SHA-256, and only then install them."""
    for path in fetch(options.folder, options.url):
        print(path)
