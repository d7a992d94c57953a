"""Run a study: train what it lists, score it, keep a JSON file per run; tabulate the files.

    python studies/NAME.py --run msn mae --seed 0      train and score on the validation part
    python studies/NAME.py --run msn --seed 0 --test   score a finished run on the test images, once
    python studies/NAME.py --report                    table and plot from the JSON of all runs

An interrupted run goes on where it stopped, and one with a JSON file is done. Several at once, with
OMP_NUM_THREADS=1 each, share the cores well.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from held_out import HeldOut
from measures import Scores, Splits, trained
from reports import write_report

from msn.config.kinds import Config
from msn.config.load import load_config
from msn.runtime.errors import UserError
from msn.runtime.files import write_json

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/studies"


@dataclass(frozen=True)
class Run:
    """A row of a study.

    Attributes:
        changes: `section.key=value` texts, applied to the recipe.
        measure: trains and gives scores; called again for the test images, when all is trained.
        recipe: its config file, if not the study's.
        paper: what stands in the paper, to compare orders.
        images: if not the study's.
    """

    changes: tuple[str, ...] = ()
    measure: Callable[[Config, Splits], Scores] = trained
    recipe: Path | None = None
    paper: str = ""
    images: HeldOut | None = None


@dataclass(frozen=True)
class Study:
    """What is compared, on what images.

    Attributes:
        name: of the folders that it writes.
        about: one sentence for the head of the table.
        images: to learn from, to choose by, and to test with.
        recipe: config file that the runs change.
        runs: by name.
        results: folder of the JSON files, by study.
        scratch: folder of the training runs, by study.
    """

    name: str
    about: str
    images: HeldOut
    recipe: Path
    runs: Mapping[str, Run]
    results: Path = ROOT / "studies/results"
    scratch: Path = RUNS

    def path(self, name: str, seed: int) -> Path:
        """Tell where the scores of a run are."""
        return self.results / self.name / f"{name}-{seed}.json"

    def images_of(self, name: str) -> HeldOut:
        """Tell which images a run takes."""
        return self.runs[name].images or self.images

    def config(self, name: str, seed: int) -> Config:
        """Build the config of a run: the recipe, on the study's images, with the run's changes."""
        run = self.runs[name]
        images = self.images_of(name).prepared()
        own = (
            f"data.source={images.source}",
            f"data.root_path={images.root_path}",
            f"logging.folder={self.scratch / self.name / f'{name}-{seed}'}",
            "logging.write_tag=run",
            "logging.probe=null",
            "logging.tensorboard=false",
            f"meta.seed={seed}",
        )
        return load_config(run.recipe or self.recipe, [*own, *run.changes])


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; give the exit code."""
    options = _parse(study, arguments)
    logging.basicConfig(level="INFO", format="%(message)s")
    try:
        for seed in options.seed:
            for name in options.run:
                (test if options.test else run)(study, name, seed)
        if options.report:
            papers = {name: run.paper for name, run in study.runs.items()}
            print(write_report(study.results / study.name, study.about, papers))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(study: Study, name: str, seed: int) -> None:
    """Train a run, or go on with it, and score it on the validation part."""
    path = study.path(name, seed)
    if path.exists():
        print(f"{path}: done already")
        return
    config = study.config(name, seed)
    scores = study.runs[name].measure(config, study.images_of(name).splits(test=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = config.model_dump(mode="json", exclude={"logging": True, "data": {"root_path"}})
    write_json(path, {"run": name, "seed": seed, "validation": scores, "config": settings})
    print(f"{path}: {scores}")


def test(study: Study, name: str, seed: int) -> None:
    """Score a finished run on the test images.

    Raises:
        UserError: it is not finished, or was tested before.
    """
    path = study.path(name, seed)
    if not path.exists():
        raise UserError(f"{path}: not there; first run without --test")
    result = json.loads(path.read_text(encoding="utf-8"))
    if "test" in result:
        raise UserError(f"{path}: has its test scores; the test images are touched once")
    config = study.config(name, seed)
    result["test"] = study.runs[name].measure(config, study.images_of(name).splits(test=True))
    write_json(path, result)
    print(f"{path}: {result['test']}")


def _parse(study: Study, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=study.about)
    parser.add_argument("--run", nargs="+", default=[], choices=list(study.runs), metavar="NAME")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--test", action="store_true", help="score on the test images, once")
    parser.add_argument("--report", action="store_true", help="write table and plot")
    options = parser.parse_args(arguments)
    if not options.run and not options.report:
        parser.error(f"give --report, or --run with some of: {', '.join(study.runs)}")
    return options
