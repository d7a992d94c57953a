"""Pre-train as a SLURM job: main_distributed.py --fname CONFIG --folder LOGS --partition P."""

import sys

from msn.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
