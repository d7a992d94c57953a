"""Errors that are meant for a person: one line, no traceback, an exit code."""


class UserError(Exception):
    """A wrong request: the message is one line that names the key or file, the rule and the remedy.

    Entry points print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class RunError(UserError):
    """The request was right, but the run could not go on."""

    exit_code = 1


class Interrupted(UserError):
    """The run was asked to stop, and did so with everything saved.

    Attributes:
        number: of the signal that asked.
    """

    exit_code = 130

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class PeerLost(UserError):
    """Another process of the run ended; its own error says why."""

    exit_code = 3


def printable(text: str) -> str:
    """Escape a text to one line of printable characters: a file name may hold anything."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
