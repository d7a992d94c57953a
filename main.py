"""Pre-train on one machine: python main.py --fname CONFIG [section.key=value ...]."""

import sys

from msn.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
