"""The command line says which command helps after an error; the API and the store do not know its commands."""

import ast
import re
from pathlib import Path

import pytest

from agentctl.command_table import COMMANDS
from agentctl.terminal.advice import ADVICE, IN_A_RUN, advice
from checks.error_codes import TABLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "command", "expected"),
    [
        ("unauthenticated", "runs", "token create"),
        ("not_found", "ledger", "ledger balance"),
        ("not_found", "token", "token list"),
        ("forbidden", "dlq", "--tier admin"),
        ("forbidden", IN_A_RUN, "secrets set"),
        ("budget_exhausted", "run", "ledger top-up"),
    ],
)
def test_an_error_is_followed_by_the_command_that_helps(code: str, command: str, expected: str) -> None:
    assert expected in (advice(code, command) or "")


@pytest.mark.parametrize(("code", "command"), [("not_found", "runs"), ("internal_error", "run"), ("", "run")])
def test_an_error_that_no_command_helps_with_has_no_advice(code: str, command: str) -> None:
    assert advice(code, command) is None


def test_advice_is_given_for_codes_and_commands_that_there_are() -> None:
    codes = {code for table in TABLES.values() for code in table}
    assert {code for code, _ in ADVICE} - codes == set()
    assert {command for _, command in ADVICE} - {"", IN_A_RUN, *COMMANDS} == set()


@pytest.mark.parametrize("text", ADVICE.values())
def test_advice_names_commands_that_there_are(text: str) -> None:
    assert set(re.findall(r"{agentctl} ([\w-]+)", text)) <= COMMANDS.keys()


@pytest.mark.parametrize("package", ["app", "backplane", "controller", "worker"])
def test_no_message_of_the_platform_names_a_command_of_the_command_line(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "agentctl " not in text:
            continue
        tree = ast.parse(text)
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        settings = {id(text) for call in ast.walk(tree) if _is_field(call) for text in ast.walk(call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in texts | settings and "agentctl " in str(node.value):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _is_field(node: ast.AST) -> bool:
    """A setting's description, which `agentctl settings` prints."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field"
