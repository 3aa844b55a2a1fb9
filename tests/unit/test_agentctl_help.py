"""What every command shares: `--json` anywhere, examples that work, and a way to let the shell complete."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from agentctl.__main__ import app
from agentctl.examples import EXAMPLES
from agentctl.groups import json_behind_the_name
from tests.scripted_api import answer
from tests.unit.conftest import Agentctl, Script


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command that can be called, and the words that call it."""
    context = group.make_context("agentctl", [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))
            if command.invoke_without_command:
                yield (*path, name), command
        else:
            yield (*path, name), command


COMMANDS = dict(commands(get_command(app)))


def test_every_command_has_examples_and_no_example_is_of_none() -> None:
    assert {" ".join(path) for path in COMMANDS} == set(EXAMPLES)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_example_can_be_typed(path: tuple[str, ...]) -> None:
    for line in EXAMPLES[" ".join(path)]:
        words = shlex.split(line.replace("<(", "").replace(")", ""))
        assert len(line) <= 76
        arguments = json_behind_the_name(words[words.index("agentctl") + 1 :])
        if arguments == ["--version"]:
            continue
        assert tuple(arguments[: len(path)]) == path
        end = next((place for place, word in enumerate(arguments) if word in {"|", ">", "<"}), None)
        context = COMMANDS[path].make_context("agentctl", arguments[len(path) : end])
        assert context.params


@pytest.mark.parametrize("path", [("runs",), ("files", "get"), ("ledger", "top-up")], ids=" ".join)
def test_a_help_ends_with_the_examples(agentctl: Agentctl, path: tuple[str, ...]) -> None:
    code, printed, _ = agentctl(*path, "--help")
    assert code == 0
    assert all(line in printed for line in EXAMPLES[" ".join(path)])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--json", "runs"], ["runs", "--json"]),
        (["--json", "files", "ls", "r"], ["files", "--json", "ls", "r"]),
        (["runs", "--json"], ["runs", "--json"]),
        (["answer", "r", "--", "--json"], ["answer", "r", "--", "--json"]),
        (["--json"], []),
        (["--json", "--help"], ["--help"]),
        (["--json", "--json", "runs"], ["runs", "--json"]),
        ([], []),
    ],
)
def test_json_may_stand_before_the_command(given: list[str], meant: list[str]) -> None:
    assert json_behind_the_name(given) == meant


RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
FILES = answer(200, {"files": [], "next_cursor": None})


@pytest.mark.parametrize(
    "arguments", [("--json", "files", "ls", RUN), ("files", "--json", "ls", RUN), ("files", "ls", RUN, "--json")]
)
def test_json_is_printed_wherever_it_is_asked_for(
    script: Script, agentctl: Agentctl, arguments: tuple[str, ...]
) -> None:
    script(FILES)
    assert agentctl(*arguments)[:2] == (0, "[]\n")


def test_the_version_is_printed_by_an_option_too(agentctl: Agentctl) -> None:
    assert agentctl("--version") == agentctl("version")


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_a_shell_is_printed(agentctl: Agentctl, shell: str) -> None:
    code, printed, notes = agentctl("completion", shell)
    assert (code, f"complete_{shell}" in printed, notes) == (0, True, "")


def test_the_ids_of_runs_are_offered(script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"run_id": RUN, "status": "running", "prompt": "Do it."}
    api = script(answer(200, {"runs": [run], "next_cursor": None}))
    monkeypatch.setenv("_AGENTCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "agentctl show 0193")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert agentctl()[:2] == (0, f"{RUN}\n")
    assert api.requests[0].path == "/agent/runs?limit=50&id_beginning=0193"


@pytest.mark.parametrize("command", ["approve", "reject", "answer"])
def test_the_runs_that_ask_something_are_offered_to_who_answers(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked = {"run_id": RUN, "kind": "question", "asked": {"question": "red?"}, "status": "pending"}
    other = {**asked, "run_id": "ffffffff"}
    api = script(answer(200, {"decisions": [asked, asked, other], "next_cursor": None}))
    monkeypatch.setenv("_AGENTCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"agentctl {command} 0193")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert agentctl()[:2] == (0, f"{RUN}\n")
    assert "status=pending" in api.requests[0].path


def test_nothing_is_offered_and_nothing_said_where_no_api_answers(
    agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("_AGENTCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "agentctl show 0193")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert agentctl()[1:] == ("\n", "")
