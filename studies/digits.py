"""MSN, MAE and SimMIM on the digits, each against its untrained encoder, in three evaluations.

    python studies/digits.py                   all rows, then the table; a row with a file is done
    python studies/digits.py --rows mae simmim

Encoders are trained by the shipped recipes on the 1,297 training digits without their labels, about
two minutes each, fine-tuned as `configs/eval/finetune_digits.yaml` says, and scored on the 500
others. Nothing is chosen here: of fine-tuning the last epoch counts.
"""

import argparse
import sys
from pathlib import Path

import torch
from harness import ROOT, RUNS
from measures import Scores, features_of, labels_of
from reports import write_report

import msn
from msn.config.kinds import Config, FinetuneConfig
from msn.config.load import load, load_config
from msn.config.protocol import PROTOCOL
from msn.data.sources import open_source
from msn.evaluation.knn import knn
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LAMBDA
from msn.models.encoder import MSN_TAPS, Taps
from msn.runtime import checkpoint
from msn.runtime.files import write_json
from msn.train.build import build_parts
from msn.train.pretraining import run_state

PATCHES = Taps(blocks=0, norm=True, patch_average=True)  # as the probe of a run reads them
CONFIGS, RESULTS = ROOT / "configs", ROOT / "studies/results/digits"
RECIPES = {
    "msn": ("quickstart.yaml", MSN_TAPS),
    "mae": ("digits_mae.yaml", PATCHES),
    "simmim": ("digits_simmim.yaml", PATCHES),
    "simmim_resnet": ("digits_simmim_resnet50.yaml", MSN_TAPS),
}
"""Recipe and features of each method: what its loss reaches."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Methods on the digits, trained and untrained.")
    parser.add_argument("--rows", nargs="+", choices=RECIPES, default=list(RECIPES))
    for name in parser.parse_args().rows:
        for kind in ("untrained", "trained"):
            path = RESULTS / f"{name}_{kind}.json"
            if not path.exists():
                scores = measured(name, trained=kind == "trained")
                RESULTS.mkdir(parents=True, exist_ok=True)
                write_json(path, {"run": f"{name}_{kind}", "seed": 0, "test": scores})
                print(f"{path}: {scores}", flush=True)
    rows = {f"{name}_{kind}": "" for name in RECIPES for kind in ("untrained", "trained")}
    print(write_report(RESULTS, "Methods on the digits, trained and untrained.", rows))
    return 0


def measured(name: str, *, trained: bool) -> Scores:
    """Train, or find that it is done; measure on frozen features, and by fine-tuning."""
    recipe, taps = RECIPES[name]
    own = [f"logging.folder={RUNS / 'digits_methods' / name}", "logging.write_tag=run"]
    config = load_config(CONFIGS / recipe, [*own, "logging.probe=null"])
    weights = msn.pretrain(config, device="cpu") if trained else at_start(config)
    return frozen(weights, config, taps) | {"fine-tuning": finetuned(weights, config)}


def at_start(config: Config) -> Path:
    """Save a run as it is before its first step."""
    folder = Path(config.logging.folder)
    checkpoint.prepare_folder(folder)
    path = folder / "untrained.pth.tar"
    parts = build_parts(config, torch.device("cpu"))
    checkpoint.save(path, run_state(config, parts, float("nan"), 0))
    return path


def frozen(weights: Path, config: Config, taps: Taps) -> Scores:
    """Let neighbors vote, and fit a logistic regression on all labels."""
    splits = open_source(config.data, "train"), open_source(config.data, "val")
    train, queries = features_of(msn.load_encoder(weights), splits, taps)
    labels, truth = map(labels_of, splits)
    k, temperature = PROTOCOL.k, PROTOCOL.temperature
    votes = knn(train, labels, queries, truth, k=k, temperature=temperature)
    inputs, outputs = (prepare(features.double()) for features in (train, queries))
    linear = accuracy(fit(inputs, labels, lambd=LAMBDA), outputs, truth)
    return {f"{k}-NN": round(votes.top1, 2), "logistic regression": round(linear.top1, 2)}


def finetuned(weights: Path, config: Config) -> float:
    """Fine-tune on all labels; give the accuracy after the last epoch."""
    tag = weights.name.partition(".")[0]
    changes = (
        *(f"data.image_size={config.image_size}", f"logging.write_tag=finetune-{tag}"),
        *(f"logging.folder={weights.parent}", f"logging.pretrain_path={weights}"),
    )
    tuning = load(FinetuneConfig, CONFIGS / "eval/finetune_digits.yaml", changes)
    return round(msn.evaluate(tuning, device="cpu").last["finetune"].top1, 2)


if __name__ == "__main__":
    sys.exit(main())
