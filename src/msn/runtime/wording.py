"""Plurals and aligned tables for messages."""

from collections.abc import Iterable


def counted(count: int, noun: str) -> str:
    """Give a number with its noun: 1 epoch, 2,000 epochs, 3 processes."""
    plural = f"{noun}es" if noun.endswith(("s", "sh", "tch", "x")) else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def aligned(facts: Iterable[tuple[str, str]]) -> str:
    """Write (name, fact) pairs, one a line, with the facts aligned below each other."""
    lines = list(facts)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {fact}" for name, fact in lines)
