"""What must be equal on all processes of a run, and how to say what differs."""

import hashlib
from pathlib import Path
from typing import Any

import torch


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Describe a process by its config, code and version of torch, as plain values."""
    return {"config": config, "code": code_version(), "torch": str(torch.__version__)}


def code_version() -> str:
    """Compute a hash of this package's source files."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """List the keys whose values differ between two nested dicts, as 'section.key: old -> new'."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def changed_keys(old: dict[str, Any], new: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """List keys as `changes` does, but skip those that `old` lacks unless `given` has them.

    A key that is younger than a file stands for what was done before, as long as it is left out.
    """
    return changes(old, _known(new, old, given))


def _known(new: dict[str, Any], old: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    known = {}
    for key, value in new.items():
        before, chosen = old.get(key), given.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            known[key] = _known(value, before, chosen if isinstance(chosen, dict) else {})
        elif key in old or key in given:
            known[key] = value
    return known
