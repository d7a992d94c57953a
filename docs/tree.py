"""Write the tree of modules into architecture.md: `python docs/tree.py`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: written by docs/tree.py -->\n", "<!-- end of tree -->"


def purpose(module: Path) -> str:
    """Give the first line of a module's docstring, without its full stop."""
    found = ast.get_docstring(ast.parse(module.read_text("utf-8")))
    return found.splitlines()[0].removesuffix(".") if found else ""


def lines(folder: Path) -> Iterator[str]:
    """List the modules of a package and of the packages in it, each with its purpose."""
    for module in sorted(folder.glob("*.py")):
        if module.stem != "__init__":
            yield f"- `{module.name}` {purpose(module)}"
    for package in sorted(folder.glob("*/__init__.py")):
        yield f"- `{package.parent.name}/` {purpose(package)}"
        yield from (f"  {line}" for line in lines(package.parent))


def floors() -> list[str]:
    """Name the folders from the top down, as the import contract does."""
    return re.findall(r'^    "msn\.(\w+)",$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)


def tree() -> str:
    """Give the tree as Markdown: a list for each folder, from the top down."""
    root = ROOT / "src" / "msn"
    parts = [f"**`{path.name}`** {purpose(path)}\n" for path in sorted(root.glob("*.py"))]
    for name in floors():
        folder = root / name
        about = purpose(folder / "__init__.py")
        parts.append("\n".join([f"**`{name}/`** {about}", "", *lines(folder), ""]))
    return "\n" + "\n".join(parts) + "\n"


def updated(page: str) -> str:
    """Put the tree of the modules as they are now between the marks of a page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + tree() + END + after


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), encoding="utf-8")
