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
    """Keep the program alive if a message cannot be shown, or if nobody reads its output."""
    codecs.register_error("msn", _shown)
    sys.stdout = _prepared(sys.stdout)
    sys.stderr = _prepared(sys.stderr)


def say_written(*paths: Path) -> None:
    """Print the names of the files that a command has written, as its last output."""
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
    """Replace what a stream cannot encode; write undecodable bytes of file names unchanged."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return PLAIN.get(sign, "?"), error.start + 1
