"""README and pages keep their promises: commands and snippets run, links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.commands import end, start_python, text

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
# In the order in which a later command may need what an earlier one made. The commands of
# docs/extending.md have a test of their own.
NAMES = ("train", "evaluate", "pictures", "weights")
TRIED = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
COMMANDS = list(
    dict.fromkeys(
        line.split("#")[0].strip()
        for page in TRIED
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    )
)
RUN = re.compile(r"python (main\.py|-m msn) |torchrun ")
SHORT = ["optimization.epochs=1", "optimization.warmup=0", "data.num_workers=0"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a few images in DATA, to run the commands in."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("main.py", "configs", "src", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    images = folder / "DATA" / "train"
    images.mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(images / f"{i}.png"), np.full((40, 40, 3), 60 * i, np.uint8))
    cv2.imwrite(str(folder / "photo.jpg"), np.arange(40 * 56 * 3).reshape(40, 56, 3) % 251)
    return folder


def shortened(words: list[str]) -> list[str]:
    """What python is to run: the command as written, but over in seconds."""
    if "configs/quickstart.yaml" in words and "=" in words[-1]:  # the demo alone reports
        words = [*words, "logging.probe.report=false"]
    if words[0] == "torchrun":  # --standalone: whatever else runs here, the port is free
        return ["-m", "torch.distributed.run", "--standalone", *words[1:], *SHORT]
    if "--linear-eval" in words or "finetune" in words:
        warmup = ["optimization.warmup=0"] * ("finetune" in words)
        return [*words[1:], "optimization.epochs=1", *warmup]
    if words[1] == "-m":
        draws = ["--draws", "2"]
        if "--subset-path" in words:  # one list: each is cross-validated
            del words[words.index("--subset-path") + 2]
        few = {
            ("evaluate", "all"): [*draws, "--max-images", "300"],
            ("evaluate", "logistic"): draws,
        }
        return [*words[1:], *few.get((words[3], words[4]), [])]
    if "configs/pretrain/msn_vits16.yaml" in words:
        tiny = "{patch_size: 16, embed_dim: 16, depth: 1, num_heads: 1}"
        size = ["data.rand_size=32", "data.focal_size=16", "criterion.batch_size=2"]
        words = [*words, f"meta.encoder={tiny}", "meta.model_name=null", *size]
    return [*words[1:], *SHORT]


def test_there_are_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert sum(command.startswith("python main.py") for command in COMMANDS) >= 4


def test_commands_run_as_written(workplace: Path) -> None:
    """In order, as a reader would: a later one may need what an earlier one made."""
    demo = "python main.py --fname configs/quickstart.yaml"  # what `make demo` runs
    for command in [demo, *filter(RUN.match, COMMANDS)]:
        process = start_python(shortened(shlex.split(command)), workplace / "said", workplace)
        code, stderr = end(process, 300), text(workplace / "said")
        assert code == 0, f"{command}\n{text(workplace / 'said', 'out')}\n{stderr}"
        assert stderr == "", command
    for snippet in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        (workplace / "snippet.py").write_text(snippet, encoding="utf-8")
        process = start_python(["snippet.py"], workplace / "said", workplace)
        assert end(process, 300) == 0, f"{snippet}\n{text(workplace / 'said')}"


def test_the_readme_is_one_screen() -> None:
    assert len(README.split()) <= 900


def test_no_page_with_commands_is_left_out() -> None:
    with_commands = {page for page in PAGES if "```bash" in page.read_text("utf-8")}
    assert with_commands == {ROOT / page for page in (*TRIED, "docs/extending.md")}


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets(target: str) -> None:
    plan = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert ("configs/quickstart.yaml" if target == "demo" else "pytest") in plan


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_paths_that_are_named_exist() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:src|tests|configs|benchmarks|docs)/[\w/.-]+)`", page.read_text())
        for path in named:
            assert (ROOT / path).exists(), f"{page.name} names {path}"
