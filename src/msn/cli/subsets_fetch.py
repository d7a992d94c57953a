"""`msn subsets fetch`: the official lists of labelled ImageNet images."""

import argparse

from msn.data.subsets import fetch, official_url


def run(options: argparse.Namespace) -> None:
    """Get all ten, check their SHA-256, and only then install them."""
    for path in fetch(options.folder, options.url or official_url()):
        print(path)
