"""Low-shot evaluation: python logistic_eval.py --subset-path FILE --root-path FOLDER ..."""

import sys

from msn.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", "logistic", *sys.argv[1:]]))
