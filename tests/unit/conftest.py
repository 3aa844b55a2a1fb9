"""The command line, called in this process, and the API that it speaks with, which answers what a test says."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentctl import __main__
from backplane.settings import Settings
from tests.scripted_api import ScriptedApi, scripted_api

Script = Callable[..., ScriptedApi]
Agentctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` file, and no variable that has a setting's name."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Makes the API that the commands of this test speak with."""
    with ExitStack() as stack:

        def start(*answers: bytes) -> ScriptedApi:
            api = stack.enter_context(scripted_api(answers))
            monkeypatch.setenv("AGENT_URL", api.url)
            monkeypatch.setenv("AGENT_TOKEN", "agt_test")
            return api

        yield start


@pytest.fixture
def agentctl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Calls a command in an empty folder: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["agentctl", *arguments])
        with pytest.raises(SystemExit) as ending:
            __main__.main()
        said = capsys.readouterr()
        return int(ending.value.code or 0), said.out, said.err

    return call
