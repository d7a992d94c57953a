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

# A module imports only from lower floors. A new module has to take a floor here.
FLOORS = {
    4: "msn.commands.export msn.commands.import"
    " main main_distributed msn.spawn msn.cli msn.__main__ msn.commands msn.commands.submit"
    " msn.commands.pretrain msn.commands.experiment"
    " msn.commands.views msn.commands.evaluate_linear msn.commands.evaluate_finetune logistic_eval"
    " msn.commands.features msn.commands.evaluate_knn msn.commands.evaluate_logistic"
    " msn.commands.evaluate_all msn.commands.subsets_draw msn.commands.subsets_fetch"
    " msn.commands.weights",
    3: "msn.interop.pretraining"
    " msn.launch msn.prior msn.resuming msn.saving"
    " msn.build msn.contact_sheet msn.plan msn.pretrain msn.profiling msn.probe msn.report"
    " msn.evaluation.knn"
    " msn.evaluation.lowshot msn.evaluation.accuracy msn.evaluation.job"
    " msn.evaluation.supervised msn.evaluation.linear msn.evaluation.finetune"
    " msn.evaluation.logistic msn.evaluation.curve",
    2: "msn.interop msn.interop.anything msn.interop.card msn.interop.classifiers msn.interop.graph"
    " msn.interop.huggingface msn.interop.official msn.interop.release msn.interop.tensorfile"
    " msn.interop.timm_vit msn.interop.weights msn.interop.zoo"
    " msn.models.msn msn.models.classifier msn.data.loader msn.data.labelled msn.features"
    " msn.data.prefetch msn.frozen msn.pretrained msn.subsets",
    1: "msn.models.encoder msn.models.head msn.models.linear msn.data.augment msn.data.sources"
    " msn.data.sources.base msn.data.sources.digits msn.data.sources.folder"
    " msn.data.sources.hugging_face msn.data.sources.idx msn.data.sources.image_list"
    " msn.data.sources.shards msn.data.sources.torchvision_sets msn.data.views"
    " msn.data.colour msn.data.device_views msn.data.batch msn.data.order msn.data.workers"
    " msn.optim msn.checkpoint msn.runlog"
    " msn.health msn.devices msn.bad_images msn.data.staging msn.lock",
    0: "msn msn.data msn.evaluation msn.models msn.config msn.configfile msn.sections"
    " msn.sections.base msn.sections.evaluation msn.sections.criterion msn.sections.data"
    " msn.sections.logging msn.sections.meta msn.sections.optimization"
    " msn.data.image msn.data.normalisation"
    " msn.data.mapped msn.data.draws msn.distributed msn.errors msn.files msn.keyed"
    " msn.losses msn.models.block msn.models.masking msn.schedules msn.models.batch_norm"
    " msn.collectives msn.identity msn.signals msn.sharding",
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}

KINDS = [name for name in FLOOR_OF if name.startswith("msn.data.sources.") and "base" not in name]

# Imports within one floor, each with its reason.
SIBLINGS = {
    ("main", "msn.cli"): "the script is the command",
    ("logistic_eval", "msn.cli"): "so is this one",
    **{
        (f"msn.commands.{name}", "msn.commands.weights"): "options of all frozen encoders"
        for name in ("features", "evaluate_knn", "evaluate_logistic", "evaluate_all")
    },
    ("msn.evaluation.curve", "msn.evaluation.logistic"): "the classifier",
    ("main_distributed", "msn.cli"): "so is this one",
    ("msn.commands.experiment", "msn.spawn"): "a process for each device",
    ("msn.config", "msn.configfile"): "the file that the config is read from",
    ("msn.__main__", "msn.cli"): "python -m msn is the command too",
    **{
        ("msn.config", f"msn.sections.{name}"): "the sections that it is made of"
        for name in ("base", "criterion", "data", "evaluation", "logging", "meta", "optimization")
    },
    **{
        (f"msn.sections.{name}", "msn.sections.base"): "a section is one of these"
        for name in ("criterion", "data", "evaluation", "logging", "meta", "optimization")
    },
    ("msn.sections.logging", "msn.sections.data"): "the probe reads a source",
    ("msn.data.mapped", "msn.errors"): "a file that was replaced under a run",
    **{("msn.data.sources", kind): "the kinds of sources" for kind in KINDS},
    **{(kind, "msn.data.sources.base"): "what they are and have in common" for kind in KINDS},
    ("msn.data.sources", "msn.data.sources.base"): "what they have in common",
    **{
        ("msn.sections.evaluation", f"msn.sections.{name}"): "types of keys in common"
        for name in ("data", "logging", "meta")
    },
    **{
        (f"msn.commands.{name}", "msn.commands.experiment"): "options in common"
        for name in ("pretrain", "evaluate_linear", "evaluate_finetune")
    },
    ("msn.commands.pretrain", "msn.commands.evaluate_linear"): "--linear-eval, as official",
    ("msn.evaluation.job", "msn.build"): "opens the images of a section",
    ("msn.evaluation.linear", "msn.build"): "chooses the precision",
    ("msn.evaluation.finetune", "msn.build"): "likewise",
    ("msn.evaluation.supervised", "msn.evaluation.accuracy"): "measured after every epoch",
    ("msn.evaluation.supervised", "msn.evaluation.job"): "what there is to learn",
    **{
        (f"msn.evaluation.{name}", f"msn.evaluation.{part}"): "the loop and its parts"
        for name in ("linear", "finetune")
        for part in ("accuracy", "job", "supervised")
    },
    ("msn.frozen", "msn.pretrained"): "the weights of an encoder",
    ("msn.evaluation.lowshot", "msn.evaluation.logistic"): "the classifier",
    ("msn.features", "msn.frozen"): "the encoder that makes them",
    ("msn.features", "msn.data.labelled"): "the images that it makes them of",
    ("msn", "msn.frozen"): "msn.load_encoder, imported when it is used",
    ("msn", "msn.interop.pretraining"): "so is msn.MSNForPreTraining",
    ("msn.data.prefetch", "msn.data.loader"): "its batches",
    ("msn.config", "msn.errors"): "a bad config is the user's error",
    ("msn.configfile", "msn.errors"): "so is a bad file",
    ("msn.configfile", "msn.sections.criterion"): "tags that a file may carry",
    ("msn.data.batch", "msn.data.device_views"): "finishes views that were cropped only",
    ("msn.data.batch", "msn.data.views"): "the views of one image of the batch",
    ("msn.data.views", "msn.data.colour"): "one of the steps of a view",
    ("msn.data.device_views", "msn.data.views"): "the blur that both paths compute",
    ("msn.distributed", "msn.errors"): "so is a half-set environment",
    ("msn.distributed", "msn.identity"): "all processes must be alike",
    ("msn.collectives", "msn.errors"): "an error of one is known to all",
    ("msn.sharding", "msn.collectives"): "how many share",
    ("msn.sharding", "msn.errors"): "one alone has nobody to share with",
    ("msn.losses", "msn.collectives"): "targets and mean assignment are those of all processes",
    ("msn.models.batch_norm", "msn.collectives"): "so are the statistics",
    ("msn.build", "msn.prior"): "which a file may hold",
    ("msn.pretrain", "msn.resuming"): "where it starts from",
    ("msn.pretrain", "msn.saving"): "what it saves",
    ("msn.resuming", "msn.build"): "the parts to load into",
    ("msn.saving", "msn.build"): "the parts to save",
    ("msn.files", "msn.errors"): "so is a folder that cannot be written",
    ("msn.contact_sheet", "msn.build"): "the views that a run would have",
    ("msn.plan", "msn.build"): "the parts that a run would have",
    ("msn.pretrain", "msn.build"): "the parts that the loop drives",
    ("msn.pretrain", "msn.probe"): "looked at while training",
    ("msn.profiling", "msn.build"): "the parts of the step",
    ("msn.profiling", "msn.pretrain"): "the step",
    ("msn.probe", "msn.build"): "the untrained encoder to compare with",
    ("msn.probe", "msn.evaluation.knn"): "the probe is a k-NN",
    ("msn.probe", "msn.report"): "the probe's last word",
    **{
        ("msn.interop." + reader, "msn.interop." + part): "weights of one form to and from another"
        for reader, parts in {
            "anything": (
                "classifiers",
                "huggingface",
                "official",
                "release",
                "tensorfile",
                "timm_vit",
                "weights",
            ),
            "card": ("weights",),
            "classifiers": ("official", "weights"),
            "graph": ("weights",),
            "huggingface": ("card", "classifiers", "tensorfile", "weights"),
            "official": ("weights",),
            "release": ("card", "official"),
            "tensorfile": ("weights",),
            "timm_vit": ("card", "classifiers", "tensorfile", "weights"),
            "zoo": ("release",),
        }.items()
        for part in parts
    },
    ("msn.interop.weights", "msn.pretrained"): "the architecture that tensors tell",
    ("msn.interop.card", "msn.pretrained"): "its official name",
    ("msn.interop.official", "msn.pretrained"): "the names of the two encoders in a file",
    ("msn.interop.classifiers", "msn.pretrained"): "which encoder a classifier is for",
    ("msn.report", "msn.evaluation.knn"): "a column of the table",
    ("msn.report", "msn.evaluation.lowshot"): "the other columns",
}

RANK_VARIABLE = re.compile(r"(LOCAL_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+")
HEAVY = {  # imported where used
    *("cyanure", "datasets", "matplotlib", "onnx", "onnxruntime", "sklearn", "tensorboard"),
    "transformers",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("src", "__init__"))


SOURCES = {module_name(path): path for path in (ROOT / "src/msn").rglob("*.py")}
SOURCES |= {path.stem: path for path in ROOT.glob("*.py") if path.stem != "setup"}
TREES = {name: ast.parse(path.read_text()) for name, path in sorted(SOURCES.items())}


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


def test_every_module_has_one_floor() -> None:
    listed = " ".join(FLOORS.values()).split()
    assert len(listed) == len(set(listed))
    assert set(SOURCES) - set(listed) == set(), "a new module needs a floor in FLOORS"


@pytest.mark.parametrize("module", TREES)
def test_imports_only_from_lower_floors(module: str) -> None:
    ours = {name for name in imported(module) if name in SOURCES}
    same_or_higher = {name for name in ours if FLOOR_OF[name] >= FLOOR_OF[module]}
    assert same_or_higher == {target for importer, target in SIBLINGS if importer == module}
    assert FLOOR_OF[module] >= 3 or "msn.config" not in ours, "floors 0-2 know no config"


@pytest.mark.parametrize("module", sorted(set(TREES) - {"msn.distributed"}))
def test_only_distributed_reads_rank_variables(module: str) -> None:
    constants = [node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str)]
    assert [text for text in texts if RANK_VARIABLE.fullmatch(text)] == []


@pytest.mark.parametrize("module", [name for name in TREES if FLOOR_OF.get(name) != 4])
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


if __name__ == "__main__":
    import_everything()
