"""`msn subsets fetch`: download the official lists of labeled ImageNet images."""

import argparse

from msn.cli.terminal import say_written
from msn.data.subsets import fetch, official_lists, official_url


def run(options: argparse.Namespace) -> None:
    """Download all ten official lists, check their SHA-256, and only then install them."""
    fetched = fetch(options.folder, options.url or official_url())
    if not fetched:
        print(f"all {len(official_lists())} lists are in {options.folder} already, and right")
    say_written(*fetched)
