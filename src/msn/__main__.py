"""`python -m msn COMMAND ...`, the same as the installed command."""

import sys

from msn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
