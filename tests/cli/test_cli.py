import pytest

from msn.cli import main as cli


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"pretrain": "train", "evaluate knn": "vote"})


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("words", [["nosuch"], ["evaluate"], ["evaluate", "nosuch"], ["knn"]])
def test_a_command_that_there_is_not_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert f"'{' '.join(words)}'" in message
    assert "evaluate knn" in message


@pytest.mark.usefixtures("commands")
def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    assert "evaluate knn  vote" in capsys.readouterr().out


def test_each_command_has_its_module() -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            cli.main([*name.split(), "--help"])
        assert exit_.value.code == 0
