"""Options of the commands that run a config file."""

import argparse

from msn.cli.arguments import count, path, positive, whole


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the options for the config file and its overrides."""
    parser.add_argument(
        "--fname", required=True, type=path, metavar="CONFIG", help="YAML config file of the run"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run on this machine, as of `evaluate linear` and `finetune`."""
    add_config(parser)
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="where to compute: cpu, cuda:0, ...; several start a process each; auto takes a GPU"
        " if there is one",
    )
    parser.add_argument(
        "--start-timeout",
        type=positive,
        default=300.0,
        metavar="SECONDS",
        help="how long the processes wait for each other at the start",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="evaluate without the images that cannot be read; short for data.skip_bad=true",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, and do nothing"
    )
    parser.add_argument(
        "--profile",
        type=count,
        metavar="STEPS",
        help="do so many steps, print where their time went, and write a trace; train nothing",
    )


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pretrain`."""
    add_experiment(parser)
    _add_kinds(parser)


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Add the options of `submit`, those of the official launcher first."""
    add_config(parser)
    add = parser.add_argument
    add(
        "--folder",
        required=True,
        type=path,
        help="folder for the output of the job, on a disk that all nodes share",
    )
    add("--partition", default="", help="partition, or several: gpu,long")
    add("--nodes", type=count, default=1, help="number of machines")
    add("--tasks-per-node", type=count, default=1, help="processes on each machine, one per GPU")
    add(
        "--time",
        type=count,
        default=4320,
        metavar="MINUTES",
        help="time limit, before which the job saves and queues itself again",
    )
    _add_kinds(parser)
    add("--account", help="account that the job is charged to")
    add("--qos", help="quality of service that the job asks for")
    add("--constraint", help="features that the nodes must have")
    add("--reservation", help="reservation to run in")
    add("--nodelist", metavar="NODES", help="nodes that the job must run on, such as node[1-4]")
    add("--exclude", metavar="NODES", help="nodes that the job must not run on")
    add("--comment", help="comment on the job for the accounting of the cluster")
    add(
        "--memory",
        type=positive,
        metavar="GB",
        help="memory of each node; left out, what the cluster gives",
    )
    add(
        "--cpus-per-task",
        type=count,
        help="processor cores of each process; left out, an equal share of those of the node",
    )
    add(
        "--gpus-per-node",
        type=whole,
        help="GPUs of each node; left out, one for each process if the nodes have any",
    )
    add(
        "--signal-delay",
        type=count,
        default=120,
        metavar="SECONDS",
        help="time to save in, before the time limit",
    )
    add(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help='shell command to run on the node first, such as "module load cuda"; may be repeated',
    )
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of sbatch, such as mail-type=END; may be repeated",
    )
    add("--local", action="store_true", help="try the job on this machine, without SLURM, and wait")


def _add_kinds(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--linear-eval",
        action="store_true",
        help="run a linear evaluation, as the command evaluate linear does; no pre-training",
    )
    kinds.add_argument(
        "--finetune",
        action="store_true",
        help="run a fine-tuning, as the command evaluate finetune does; no pre-training",
    )
