"""The pages for people who change the code say what is there."""

import pkgutil
import re
import runpy
from pathlib import Path

import pytest

from msn.config.kinds import MSNConfig

ROOT = Path(__file__).parents[2]
TREE = runpy.run_path(str(ROOT / "docs/tree.py"))
FOLDERS = {path.parent.name for path in ROOT.glob("src/msn/*/__init__.py")}
CODE = re.compile(r"`([a-z_]+(?:\.\w+)+)(?:\(.*?\))?`")


def test_the_tree_is_current() -> None:
    page = TREE["PAGE"].read_text("utf-8")
    assert TREE["updated"](page) == page, "run: python docs/tree.py"
    assert set(TREE["floors"]()) == FOLDERS
    for module in ROOT.glob("src/msn/*/**/*.py"):
        assert TREE["purpose"](module), f"{module}: no docstring"
        assert module.name == "__init__.py" or f"- `{module.name}` " in page


def is_key(name: str) -> bool:
    """Whether a dotted name is a section of a config file and a key of it."""
    section, _, key = name.partition(".")
    return section in MSNConfig.model_fields and key in MSNConfig.section(section).model_fields


@pytest.mark.parametrize("page", ["architecture", "method", "extending"])
def test_names_of_code_are_those_of_the_code(page: str) -> None:
    named = CODE.findall((ROOT / f"docs/{page}.md").read_text("utf-8"))
    for name in {name for name in named if name.split(".")[0] in FOLDERS | {"msn"}}:
        if not is_key(name) and not name.endswith((".py", ".json")):
            pkgutil.resolve_name(name if name.startswith("msn.") else f"msn.{name}")
