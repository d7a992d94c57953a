"""Output that works on any terminal and survives a closed pipe."""

import codecs
import io
import sys
from pathlib import Path
from typing import Any, TextIO

PLAIN = {"±": "+/-"}
"""What stands for a sign that the terminal cannot show; for all others, a question mark."""


class _Forgiving(io.FileIO):
    """A stream whose reader may go away, as `head` does: the work goes on without it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Let no message end the program because it cannot be shown, nor because nobody reads it."""
    codecs.register_error("msn", _shown)
    sys.stdout = _prepared(sys.stdout)
    sys.stderr = _prepared(sys.stderr)


def say_written(*paths: Path) -> None:
    """Name the files that a command has written: its last words."""
    for path in paths:
        print(f"wrote {path}")


def _prepared(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # none, or something of the program around
    stream.reconfigure(errors="msn")
    if stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    raw: Any = _Forgiving(stream.fileno(), "w", closefd=False)
    buffered = isinstance(stream.buffer, io.BufferedWriter)  # not so with PYTHONUNBUFFERED
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of file names as they were, and something near to what cannot be shown."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return PLAIN.get(sign, "?"), error.start + 1
