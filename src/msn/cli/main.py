"""The command line: `msn COMMAND ...`, `python -m msn COMMAND ...` and the scripts at the top."""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msn import __version__
from msn.cli.arguments import Parser
from msn.cli.options import encoders, files, pictures, runs
from msn.cli.terminal import prepare_streams
from msn.runtime import log
from msn.runtime.errors import Interrupted, UserError


class Command(NamedTuple):
    """What a command is for, and its options. Its work is `run` of a module in `msn.cli`: only the
    one that runs is imported, with the libraries that it needs."""

    module: str
    purpose: str
    add_options: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "pretrain": Command(
        "pretrain", "pre-train a Vision Transformer with Masked Siamese Networks", runs.add_pretrain
    ),
    "views": Command("views", "draw the views that a config makes of an image", files.add_views),
    "visualize reconstruction": Command(
        "visualize_reconstruction",
        "draw held-out images, masked and filled in by MAE or SimMIM",
        files.add_reconstruction,
    ),
    "visualize all": Command(
        "visualize_all", "draw every picture of an encoder, with a page", pictures.add_all
    ),
    "visualize attention": Command(
        "visualize",
        "draw where the class token of a Vision Transformer looks",
        pictures.add_attention,
    ),
    "visualize map": Command(
        "visualize", "draw a map of the representation: t-SNE, PCA or UMAP", pictures.add_map
    ),
    "visualize neighbors": Command(
        "visualize", "draw the images most alike to some, no labels needed", pictures.add_neighbors
    ),
    "visualize pca": Command(
        "visualize", "draw the principal components of patch tokens as colors", pictures.add_pca
    ),
    "visualize prototypes": Command(
        "visualize",
        "draw the images that each prototype of MSN stands for, and how often it is used",
        pictures.add_prototypes,
    ),
    "export": Command(
        "export", "write weights for other software, or release a whole run", files.add_export
    ),
    "import": Command(
        "import_weights",
        "read weights from elsewhere, or download the released ones",
        files.add_import,
    ),
    "submit": Command(
        "submit", "run a config as a SLURM job, queued again until it is done", runs.add_submit
    ),
    "features": Command(
        "features", "write the features of a frozen encoder to a file", encoders.add_features
    ),
    "evaluate all": Command(
        "evaluate_all",
        "compare raw pixels, untrained and trained encoder in one table",
        encoders.add_all,
    ),
    "evaluate knn": Command(
        "evaluate_knn", "let nearest neighbors vote on frozen features", encoders.add_knn
    ),
    "evaluate logistic": Command(
        "evaluate_logistic",
        "fit a logistic regression on frozen features with few labels or all",
        encoders.add_logistic,
    ),
    "evaluate linear": Command(
        "evaluate_linear",
        "train linear classifiers on frozen features, with all labels",
        runs.add_experiment,
    ),
    "evaluate finetune": Command(
        "evaluate_finetune",
        "train encoder and classifier together, with labels",
        runs.add_experiment,
    ),
    "subsets draw": Command(
        "subsets_draw", "write lists of a few labeled images of each class", files.add_draw
    ),
    "subsets fetch": Command(
        "subsets_fetch", "get the official lists of labeled ImageNet images", files.add_fetch
    ),
}
"""By name, of one or two words."""

HELP = ("-h", "--help", "help")
OVERRIDE = re.compile(r"\w+(\.\w+)+=")
"""How `section.key=value` begins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 if it is done, 1 if it failed, 2 if misused, 130 if interrupted."""
    prepare_streams()
    log.show()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    code = _outcome(words)
    if code and "torch" in sys.modules:
        from msn.runtime.distributed import leave

        leave(code)
    return code


def _outcome(words: list[str]) -> int:
    """Run a command, print what went wrong, if anything did, and return the exit code."""
    try:
        _run(words)
    except UserError as error:
        if "torch" in sys.modules:
            from msn.runtime.distributed import report

            report(error)
        prefix = "" if isinstance(error, Interrupted) else "error: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the last saved checkpoint is what there is", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def _run(words: list[str]) -> None:
    # "evaluate knn" before "evaluate", if there were both
    length = next((n for n in (2, 1) if " ".join(words[:n]) in COMMANDS), 0)
    if not length:
        print(_overview(words))
        return
    name = " ".join(words[:length])
    command = COMMANDS[name]
    purpose = command.purpose
    parser = Parser(prog=f"msn {name}", description=f"{purpose[0].upper()}{purpose[1:]}.")
    command.add_options(parser)
    # Overrides first: an option that takes several values would take those behind it too.
    rest = sorted(words[length:], key=lambda word: not OVERRIDE.match(word))
    options = parser.parse_intermixed_args(rest)
    importlib.import_module(f"msn.cli.{command.module}").run(options)


def _overview(words: list[str]) -> str:
    """List the commands, or give the version.

    Raises:
        UserError: something else is asked for.
    """
    asked = [word for word in words if word not in HELP]
    if asked == ["--version"]:
        return f"msn {__version__}"
    shown = [name for name in COMMANDS if not asked or name.startswith(f"{' '.join(asked)} ")]
    if not shown:
        raise UserError(f"'{' '.join(asked[:2])}': no such command; {_meant(asked)}")
    width = max(map(len, shown))
    return "\n".join(
        (
            f"usage: msn {' '.join([*asked, 'COMMAND'])} ...",
            "",
            "Masked Siamese Networks: pre-training and evaluation of Vision Transformers.",
            "",
            *(f"  {name.ljust(width)}  {COMMANDS[name].purpose}" for name in shown),
            "",
            "msn COMMAND --help lists the options of a command, msn --version the version.",
        )
    )


def _meant(asked: list[str]) -> str:
    """Suggest the commands that may have been meant by an unknown one."""
    group = [name for name in COMMANDS if name.split()[0] == asked[0]]
    tried = " ".join(asked[:2])
    near = (
        [name for name in COMMANDS if asked[0] in name.split()]
        or difflib.get_close_matches(tried, COMMANDS, 1)
        or difflib.get_close_matches(asked[0], COMMANDS, 1)
    )
    if group:
        return f"there are: {', '.join(group)}"
    if near:
        return f"did you mean '{near[0]}'? msn help lists all"
    return f"there are: {', '.join(COMMANDS)}"
