"""What the command line says before a command works, and where it says it."""

import importlib
import os
import subprocess
import sys
from keyword import iskeyword
from pathlib import Path

import pytest

from msn import __version__
from msn.cli import main as cli
from msn.cli.arguments import Parser
from msn.cli.options import encoders, files
from msn.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def said(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def test_a_command_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, remedy in {
        "nosuch": "there are: pretrain, views,",
        "evaluate nosuch": "there are: evaluate all, evaluate knn,",
        "knn": "did you mean 'evaluate knn'?",
        "trian": "did you mean 'pretrain'?",
        "help nosuch": "there are: pretrain, views,",
    }.items():
        code, out, err = said(words, capsys)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: '{words.removeprefix('help ')}': no such command; {remedy}")
        assert err.count("\n") == 1


def test_groups_and_help_list_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("", "help", "--help", "-h"):
        code, out, _ = said(words, capsys)
        assert code == 0
        assert all(f"  {name}" in out for name in cli.COMMANDS)
    for group in ("evaluate", "subsets"):
        for words in (group, f"{group} --help", f"help {group}", f"{group} help"):
            code, out, _ = said(words, capsys)
            assert code == 0
            listed = [name for name in cli.COMMANDS if f"  {name} " in out]
            assert listed == [name for name in cli.COMMANDS if name.startswith(group)]
    assert said("--version", capsys) == (0, f"msn {__version__}\n", "")


def test_each_command_tells_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in cli.COMMANDS.items():
        assert command.module.isidentifier()
        assert not iskeyword(command.module)
        for words in (f"{name} --help", f"help {name}"):
            with pytest.raises(SystemExit) as exit_:
                cli.main(words.split())
            assert exit_.value.code == 0
            assert f"usage: msn {name}" in capsys.readouterr().out
        importlib.import_module(f"msn.cli.{command.module}").run  # noqa: B018


def test_every_option_is_told_in_a_phrase_with_its_default() -> None:
    for name, command in cli.COMMANDS.items():
        parser = Parser(name, name)
        command.add_options(parser)
        text = " ".join(parser.format_help().split())
        for action in parser._actions[1:]:
            help_ = action.help or ""
            assert len(help_.split()) > 2, (name, action.dest)
            assert not help_.startswith(("(", "of ", "to ")), (name, action.dest)
            # What has no default says what happens without it, or is needed, or does nothing.
            if isinstance(action.default, (int, float)) and action.nargs != 0:
                assert f"(default: {action.default})".lower() in text, (name, action.dest)
    parser = Parser("knn", "knn")
    encoders.add_knn(parser)
    text = parser.format_help()
    assert "(default: 10 20)" in text
    assert "(default: 0.0)" in text
    assert "neighbour" not in text


def test_the_choices_are_those_of_the_parts() -> None:
    """They are written down twice, as the options know nothing of the large libraries."""
    from msn.data.sources.base import SPLITS
    from msn.evaluation.logistic import SOLVERS
    from msn.interop.graph import OPSETS, TAPS
    from msn.interop.official import KEYS
    from msn.interop.zoo import MODELS

    assert tuple(KEYS) == encoders.ENCODERS
    assert SOLVERS == encoders.SOLVERS
    assert SPLITS == encoders.SPLITS
    assert (OPSETS, TAPS) == (files.OPSETS, files.TAPS)
    assert tuple(MODELS) == files.RELEASED


def test_a_wrong_value_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    whole, number = "must be a whole number from 1 to", "must be a number above 0"
    for words, message in {
        "evaluate knn --k nan": f"--k nan: {whole}",
        "evaluate knn --k 1_0": f"--k 1_0: {whole}",
        "evaluate knn --k 5 0": f"--k 0: {whole}",
        "evaluate knn --temperature inf": "--temperature inf: must be a number from 0.0001",
        "evaluate all --draws 2147483647": f"--draws 2147483647: {whole} 1,000,000,000",
        "features --out x --image-size 100000": f"--image-size 100000: {whole} 4,096",
        "features --out x --batch-size 9999999": f"--batch-size 9999999: {whole} 1,000,000",
        "pretrain --fname x --start-timeout 1e308": f"--start-timeout 1e308: {number}, up to 1,0",
        "evaluate knn --mask 1": "--mask 1: must be a share of at least 0 and below 1",
        "evaluate knn --mask nan": "--mask nan: must be a share of at least 0 and below 1",
        "evaluate all --max-images 0": f"--max-images 0: {whole}",
        "evaluate all --seed -1": "--seed -1: must be a whole number of at least 0",
        "evaluate logistic --lambd nan": f"--lambd nan: {number}, up to 1,000,000,000, or auto",
        "evaluate logistic --normalize maybe": "--normalize maybe: must be true or false",
        "export a b --to x": "--to: invalid choice: 'x'",
        "pretrain --fname x --profile 0": f"--profile 0: {whole}",
        "pretrain --fname x --start-timeout 0": f"--start-timeout 0: {number}",
        "submit --fname x --folder y --nodes 0": f"--nodes 0: {whole}",
        "submit --fname x --folder y --finetune --linear-eval": "--linear-eval: not allowed with",
        "views": "the following arguments are required: --fname, --image, --out",
        "features --nosuch --out x": "unrecognized arguments: --nosuch",
        "features --out ~nosuchuser/x": "--out ~nosuchuser/x: must be in the home folder of a",
    }.items():
        code, out, err = said(words, capsys)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith(f"error: {message}"), err
        assert err.endswith(" --help has all options\n")


def test_paths_of_options_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    shown: dict[str, set[str]] = {}
    for name, command in cli.COMMANDS.items():
        parser = Parser(name, name)
        command.add_options(parser)
        for action in parser._actions:
            if (action.metavar or action.dest.upper()) in (
                *("CONFIG", "FILE", "FOLDER", "PNG", "WEIGHTS", "OUT"),
            ) and action.dest != "image_folder":
                assert callable(action.type), (name, action.dest)
                assert action.type("~/x.png") == Path("/home/of/me/x.png")
                shown.setdefault(name, set()).add(action.dest)
    assert shown["evaluate logistic"] >= {"weights", "fname", "cache", "pretrained", "root_path"}
    assert shown["export"] == {"weights", "out", "head"}
    assert set(shown) == set(cli.COMMANDS)
    parser = Parser("x", "x")
    files.add_fetch(parser)
    with pytest.raises(UserError, match="--folder '': must be a path"):
        parser.parse_args(["--folder", ""])


def test_help_needs_none_of_the_large_libraries() -> None:
    code = (
        "import runpy, sys\n"
        "for script in ('main.py', 'main_distributed.py', 'logistic_eval.py'):\n"
        "    sys.argv = [script, '--help']\n"
        "    try: runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as exit_: assert exit_.code == 0\n"
        "large = {'torch', 'numpy', 'pydantic', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {large}' if large else 0)"
    )
    done = process(["-c", code])
    assert done.returncode == 0, done.stderr
    for script, options in {
        "main.py": "msn pretrain",
        "main_distributed.py": "msn submit",
        "logistic_eval.py": "msn evaluate logistic",
    }.items():
        assert (ROOT / script).exists()
        assert f"usage: {options}".encode() in done.stdout


def process(words: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, cwd=ROOT, env=variables, check=False
    )


def test_a_terminal_that_cannot_show_a_sign() -> None:
    code = (
        "from msn.cli.terminal import prepare_streams; prepare_streams()\n"
        "print('84.8 \\u00b1 1.0', '\\u2603', 'a\\udcff.png')"
    )
    for encoding, shown in {
        "ascii": b"84.8 +/- 1.0 ? a\xff.png\n",
        "latin-1": b"84.8 \xb1 1.0 ? a\xff.png\n",
        "utf-8": "84.8 ± 1.0 \u2603 a".encode() + b"\xff.png\n",
    }.items():
        done = process(["-c", code], PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr, done.stdout) == (0, b"", shown)


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_no_work(tmp_path: Path) -> None:
    """Even in the middle of the output, and with errors on their way to it too."""
    code = (
        "import sys; from msn.cli.terminal import prepare_streams; prepare_streams()\n"
        "for _ in range(20000): print('x' * 80, flush=True); print('y', file=sys.stderr)\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    for merged, unbuffered in (("", ""), ("2>&1", ""), ("2>&1", "1")):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" "$2" {merged} | head -1; echo ${{PIPESTATUS[0]}}',
             sys.executable, code, str(tmp_path / "done")],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"),
                 "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
        assert done.stdout == f"{'x' * 80}\n0\n"
        assert "Error" not in done.stderr
        assert (tmp_path / "done").read_text() == "done"
        (tmp_path / "done").unlink()
