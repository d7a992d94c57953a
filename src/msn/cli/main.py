"""The command line: `msn COMMAND ...`, `python -m msn COMMAND ...` and the scripts at the top."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence

from msn.runtime.errors import Interrupted, UserError

COMMANDS = {
    "pretrain": "pre-train a Vision Transformer with Masked Siamese Networks",
    "views": "draw the views that a config makes of an image",
    "export": "write weights for other software, or release a whole run",
    "import": "read weights from elsewhere, or download the released ones",
    "submit": "the same as a SLURM job, queued again until it is done",
    "evaluate linear": "train linear classifiers on frozen features, with all labels",
    "evaluate finetune": "train encoder and classifier together, with labels",
    "features": "write the features of a frozen encoder to a file",
    "evaluate all": "k-NN, few labels and all, trained and untrained, in one table",
    "evaluate logistic": "logistic regression on frozen features with few labels or all",
    "evaluate knn": "nearest neighbours on frozen features",
    "subsets draw": "write lists of a few labelled images of each class",
    "subsets fetch": "get the official lists of labelled ImageNet images",
}
"""Name, of one or two words, and purpose; the command is the module of that name in
`msn.cli`, with underscores."""

OVERRIDE = re.compile(r"\w+(\.\w+)+=")
"""How `section.key=value` begins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # "evaluate knn" before "evaluate", if there were both
    length = next((n for n in (2, 1) if " ".join(words[:n]) in COMMANDS), 0)
    if not length:
        groups = {command.split()[0] for command in COMMANDS if " " in command}
        return _choose([" ".join(words[:2])] if groups & set(words[:1]) else words)
    name = " ".join(words[:length])
    # Only the command that runs is imported, with the libraries that it needs.
    module = name.replace(" ", "_").replace("-", "_")
    command = importlib.import_module(f"msn.cli.{module}")
    parser = argparse.ArgumentParser(prog=f"msn {name}", description=COMMANDS[name])
    command.configure(parser)
    # Overrides first: an option that takes several values would take those behind it too.
    rest = sorted(words[length:], key=lambda word: not OVERRIDE.match(word))
    options = parser.parse_intermixed_args(rest)
    code = _outcome(command.run, options)
    if code:
        from msn.runtime.distributed import leave  # torch comes along, which help can do without

        leave(code)
    return code


def _outcome(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command and say what went wrong, if anything did; the exit code."""
    try:
        run(options)
    except UserError as error:
        from msn.runtime.distributed import report

        report(error)
        prefix = "" if isinstance(error, Interrupted) else "error: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the last saved checkpoint is what there is", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def _choose(words: Sequence[str]) -> int:
    """Say which commands there are, or refuse one that there is not."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="msn",
        description="Masked Siamese Networks: pre-training and evaluation of ViTs.",
        epilog="\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.parse_args(words)
    return 0
