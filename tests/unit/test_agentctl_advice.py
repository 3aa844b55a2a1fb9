"""The API's advice names calls. A person who reads it in a terminal needs a command."""

import re

import pytest

from agentctl.api.api_error import COMMAND_OF_CALL, in_commands
from tests.unit.conftest import Agentctl


@pytest.mark.parametrize(
    ("advice", "shown"),
    [
        ("GET /api/deployments lists those there are", "`agentctl deployments list` lists those there are"),
        ("GET /api/deployments/a-1/revisions lists them", "`agentctl deployments revisions a-1` lists them"),
        ("PATCH /api/deployments/a-1 changes it", "`agentctl deployments apply FILE` changes it"),
        ("GET /agent/runs/a-1 shows those it has", "`agentctl show a-1` shows those it has"),
        ("GET /agent/runs/a-1/files/PATH", "GET /agent/runs/a-1/files/PATH"),
        ("by DELETE /agent/runs/RUN", "by DELETE /agent/runs/RUN"),
    ],
)
def test_a_call_becomes_the_command_that_makes_it(advice: str, shown: str) -> None:
    assert in_commands(advice) == shown


@pytest.mark.parametrize("command", COMMAND_OF_CALL.values())
def test_each_of_these_commands_exists(agentctl: Agentctl, command: str) -> None:
    words = re.findall(r"agentctl ([a-z -]+)", command)[0].split()
    code, printed, _ = agentctl(*words, "--help")
    assert (code, f"agentctl {' '.join(words)} " in printed) == (0, True)
