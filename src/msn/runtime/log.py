"""What the package says while it works: by one logger, "msn", of the standard library.

A program that embeds the package hears nothing below warnings unless it sets logging up, and can
silence or redirect all of it; the command line shows it on stdout.
"""

import logging
import sys
from typing import TextIO

SHOWN = "msn on stdout"

logger = logging.getLogger("msn")


def show() -> None:
    """Print what is logged to stdout, as the command line does; calling it again does nothing."""
    if not any(handler.get_name() == SHOWN for handler in logger.handlers):
        handler = _Stdout()
        handler.set_name(SHOWN)
        handler.setFormatter(_Formatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


class _Stdout(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stdout` is at the time, such as that of a progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


def _of_rank_0(record: logging.LogRecord) -> bool:
    """Tell whether this process is rank 0, which logs for all."""
    from msn.runtime import collectives  # torch comes along

    return collectives.rank() == 0


logger.addFilter(_of_rank_0)
