"""The argument parser, its help texts and the types of values that all commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from msn.runtime.errors import UserError

Number = TypeVar("Number", int, float)


class Help(argparse.HelpFormatter):
    """Shows the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        values = default if isinstance(default, (list, tuple)) else [default]
        if action.nargs == 0 or values in ([], [None], [""], [argparse.SUPPRESS]):
            return text
        shown = " ".join(
            str(value).lower() if isinstance(value, bool) else str(value) for value in values
        )
        return f"{text} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """Refuses wrong words in one line, without half a page of usage before it."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=Help)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: always.
        """
        name, colon, reason = message.removeprefix("argument ").partition(": ")
        if ": must be " in reason:  # of the types below: "--k: 0: must be ..."
            colon = " "
        raise UserError(f"{name}{colon}{reason}; {self.prog} --help has all options")


def path(text: str) -> Path:
    """Read a path and expand `~`, also where the shell does not, as in `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("'': must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{text}: must be in the home folder of a user that there is"
        ) from None


def png(text: str) -> Path:
    """Read the path of a picture, which is written as PNG."""
    found = path(text)
    if found.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text}: must be a name that ends in .png")
    return found


def truth(text: str) -> bool:
    """Read a yes or no: `--normalize False` means false, whereas `bool` takes any text as true."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text}: must be true or false")
    return known[text.lower()]


def _number(
    kind: Callable[[str], Number], rule: str, fits: Callable[[Number], bool]
) -> Callable[[str], Number]:
    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value) or "_" in text:
            raise argparse.ArgumentTypeError(f"{text}: must be {rule}")
        return value

    return convert


def _between(least: int, most: int) -> Callable[[str], int]:
    rule = f"a whole number from {least} to {most:,}"
    return _number(int, rule, lambda value: least <= value <= most)


# As wide as the keys of a config: what lies outside is a slip.
MOST = 1_000_000_000
whole = _number(int, "a whole number of at least 0", lambda value: 0 <= value < 2**63)
count = _between(1, MOST)
batch = _between(1, 1_000_000)
few = _between(1, 1000)
side = _between(1, 4096)
positive = _number(float, f"a number above 0, up to {MOST:,}", lambda value: 0 < value <= MOST)
divisor = _number(float, "a number from 0.0001 to 1,000", lambda value: 1e-4 <= value <= 1000)
share = _number(float, "a share of at least 0 and below 1", lambda value: 0 <= value < 1)
_strength = _number(
    float, f"a number above 0, up to {MOST:,}, or auto", lambda value: 0 < value <= MOST
)


def strength(text: str) -> float | None:
    """Read the strength of a penalty: a number, or None for `auto`."""
    return None if text == "auto" else _strength(text)
