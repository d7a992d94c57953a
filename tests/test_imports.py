"""The plan of the house: who may import whom, and that importing anything has no effect."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RANK_VARIABLE = re.compile(r"(LOCAL_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+")
HEAVY = {  # imported where used
    *("cyanure", "datasets", "matplotlib", "onnx", "onnxruntime", "sklearn", "tensorboard"),
    "transformers",
    "umap",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("src", "__init__"))


SOURCES = {module_name(path): path for path in (ROOT / "src/msn").rglob("*.py")}
SOURCES |= {path.stem: path for path in ROOT.glob("*.py") if path.stem != "setup"}
TREES = {name: ast.parse(path.read_text()) for name, path in sorted(SOURCES.items())}
BELOW_THE_CLI = [name for name in TREES if name.split(".")[1:2] not in (["cli"], [], ["__main__"])]


def imported(module: str) -> Iterator[str]:
    """Names of the modules that `module` imports, also inside functions."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write relative imports in full"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else base for name in names)


@pytest.mark.parametrize("module", sorted(set(TREES) - {"msn.runtime.distributed"}))
def test_only_distributed_reads_rank_variables(module: str) -> None:
    constants = [node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str)]
    assert [text for text in texts if RANK_VARIABLE.fullmatch(text)] == []


@pytest.mark.parametrize(
    "module",
    [name for name in BELOW_THE_CLI if name != "msn.config.__main__"],  # a command itself
)
def test_only_the_top_floor_reads_the_command_line(module: str) -> None:
    attributes = [node.attr for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)]
    assert "argv" not in attributes
    assert "argparse" not in imported(module)


def process_state() -> dict[str, object]:
    """What an import could change behind the back of the program."""
    import logging
    import random
    import threading
    import warnings

    import cv2
    import numpy as np
    import torch

    return {
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "warning filters": list(warnings.filters),
        "threads": [thread.name for thread in threading.enumerate()],
        "python generator": random.getstate(),
        "numpy generator": repr(np.random.get_state()),
        "torch generator": torch.get_rng_state().tolist(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch dtype": torch.get_default_dtype(),
        "torch grad": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "cuda in use": torch.cuda.is_initialized(),
        "cv2 threads": cv2.getNumThreads(),
    }


def import_everything() -> None:
    """Run in a process of its own: import each module and complain about what that changed."""
    used = {name for module in TREES for name in imported(module)} - set(SOURCES)
    for library in sorted(name for name in used if not HEAVY & set(name.split("."))):
        __import__(library)  # what libraries do is not ours
    loaded, before = set(sys.modules), process_state()
    for name in SOURCES:
        __import__(name)
    after = process_state()
    changed = [key for key in before if before[key] != after[key]]
    heavy = sorted((HEAVY & set(sys.modules)) - loaded)
    sys.exit(f"changed {changed}, imported {heavy}" if changed or heavy else 0)


@pytest.mark.slow
def test_importing_has_no_effect() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, __file__]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


def test_the_package_by_itself_loads_no_library() -> None:
    code = "import sys, msn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert not {"torch", "timm", "torchvision", "numpy", "cv2", "pydantic"} & {
        *loaded.stdout.split()
    }


SLOW = {  # takes longer than all of ours together
    *("cyanure", "matplotlib", "numba", "sklearn", "timm", "torch._dynamo"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torchvision", "transformers"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import msn; msn.load_encoder", SLOW),
        ("import msn.cli.pretrain", SLOW),
        ("from msn.cli.main import main; main(['pretrain', '--help'])", {"numpy", "torch", *SLOW}),
    ],
)
def test_what_is_imported_only_where_it_is_used(code: str, unwanted: set[str]) -> None:
    listing = f"import atexit, sys; atexit.register(lambda: print('\\n', *sys.modules)); {code}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True, env=environment
    )
    assert not unwanted & {*result.stdout.splitlines()[-1].split()}


if __name__ == "__main__":
    import_everything()
