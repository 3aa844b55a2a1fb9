"""Roles as they are found: those that come along, files, classes; and what is wrong with one, in words."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from worker.roles import Agent, Message, Role
from worker.roles.model_role import ModelRole
from worker.roles.registry import GROUP, installed_roles
from worker.roles.turn import TurnChanges
from worker.tools.plugins import PluginRefused
from worker.tools.registry import builtin_tools

BUILT_IN = ("business_analyst", "developer", "team_leader", "tester")
FINE = "name: helper\ninstructions: Help.\n"


class GreeterOfDoors(Role):
    async def on_message(self, message: Message, agent: Agent) -> str:
        return "hello"


class Named(Role):
    name = "developer"
    listens_to = ("order.*",)

    async def on_message(self, message: Message, agent: Agent) -> None: ...


class WithoutMethod(Role):
    pass


class NotAsync(Role):
    def on_message(self, message: Message, agent: Agent) -> Any:
        return None


class TakesTooLittle(Role):
    async def on_message(self, message: Message) -> Any:  # type: ignore[override]
        return None


class OneText(Role):
    listens_to = "order.*"  # type: ignore[assignment]

    async def on_message(self, message: Message, agent: Agent) -> None: ...


class WrongPattern(Named):
    listens_to = ("order..made",)


class WrongModel(GreeterOfDoors):
    model = "qwen"


class Raises(GreeterOfDoors):
    def __init__(self) -> None:
        raise LookupError("no such thing")


class ListensToNothing(GreeterOfDoors):
    listens_to = None  # type: ignore[assignment]


class ListensToNumbers(GreeterOfDoors):
    listens_to = (5,)  # type: ignore[assignment]


class ListensOnce(GreeterOfDoors):
    listens_to = (one for one in ("order.*",))  # type: ignore[assignment]


class ModelOfNoText(GreeterOfDoors):
    model = ["a/b"]  # type: ignore[assignment]


class Exits(GreeterOfDoors):
    def __init__(self) -> None:
        raise SystemExit(0)


class TakesNames(Role):
    async def on_message(self, *, message: Message, agent: Agent) -> None: ...  # type: ignore[override]


class Static(Role):
    @staticmethod
    async def on_message(self: Any, message: Message, agent: Agent) -> None: ...  # type: ignore[override]


class Unreadable(GreeterOfDoors):
    @property
    def name(self) -> str:  # type: ignore[override]
        raise LookupError("no name")


def tens(mapping_or_list: str) -> str:
    """YAML of ten values that each name the one before ten times: a few lines that stand for ten milliards."""
    named = [f"a{number}: &a{number} " for number in range(11)]
    lines = [f"{named[0]}{{k: v}}"]
    lines += [name + mapping_or_list.format(", ".join([f"*a{number}"] * 10)) for number, name in enumerate(named[1:])]
    return "{" + ", ".join(lines) + "}"


def entry(value: str) -> EntryPoint:
    return EntryPoint("roles", f"{__name__}{value}", GROUP)


def test_four_roles_come_along_and_ask_for_tools_that_there_are() -> None:
    registry = installed_roles("", [])
    assert registry.names == BUILT_IN
    # Those of memory are there where a place for it is named.
    known = {*builtin_tools().names, "ask_agent", "send_message", "remember", "recall"}
    for name in BUILT_IN:
        found = registry.get(name)
        assert found is not None
        assert isinstance(found.role, ModelRole)
        assert set(found.role.file.tools or ()) <= known
        assert len(found.role.file.instructions) < 2_000


@pytest.mark.parametrize(("value", "name"), [(":GreeterOfDoors", "greeter-of-doors"), (":Named", "developer")])
def test_an_entry_point_names_a_class_and_may_replace_a_role_that_comes_along(value: str, name: str) -> None:
    found = installed_roles("", [entry(value)]).get(name)
    assert found is not None
    assert type(found.role).__name__ == value[1:]
    assert len(found.code) == 64


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (":WithoutMethod", "has no `async def on_message"),
        (":NotAsync", "is no `async def`"),
        (":TakesTooLittle", r"must take \(self, message, agent\)"),
        (":OneText", "listens_to is a text"),
        (":WrongPattern", "send a type, a beginning of types"),
        (":WrongModel", "write SERVER/NAME"),
        (":ListensToNothing", "listens_to is None; write a tuple of types"),
        (":ListensToNumbers", "listens_to is .* write a tuple of types"),
        (":ListensOnce", "listens_to is .* write a tuple of types"),
        (":ModelOfNoText", "write SERVER/NAME"),
        (":Exits", r"Exits\(\) raises SystemExit"),
        (":TakesNames", r"must take \(self, message, agent\)"),
        (":Static", r"must take \(self, message, agent\)"),
        (":Unreadable", "cannot be looked at .LookupError: no name"),
        (":Raises", r"Raises\(\) raises LookupError: no such thing"),
        (":BUILT_IN", "it gives a str, not a class"),
        (":nothing", "it cannot be loaded"),
    ],
)
def test_a_class_that_can_be_no_role_is_refused_with_the_reason(value: str, reason: str) -> None:
    with pytest.raises(PluginRefused, match=reason):
        installed_roles("", [entry(value)])


def test_a_folder_has_files_for_models_and_files_of_python(tmp_path: Path) -> None:
    (tmp_path / "helper.yaml").write_text(FINE)
    (tmp_path / "mine.py").write_text(
        "from worker.roles import Agent, Message, Role\n"
        "class _Base(Role):\n    pass\n"
        "class Mine(_Base):\n    async def on_message(self, message, agent):\n        return 1\n"
    )
    (tmp_path / "notes.txt").write_text("not read")
    registry = installed_roles(str(tmp_path), [])
    assert set(registry.names) == {*BUILT_IN, "helper", "mine"}
    helper = registry.get("helper")
    assert helper is not None
    assert helper.package == "helper.yaml"


def test_two_roles_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(FINE)
    (tmp_path / "two.yml").write_text(FINE)
    with pytest.raises(PluginRefused, match=r"two roles have the name 'helper', one of one\.yaml and one of two\.yml"):
        installed_roles(str(tmp_path), [])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginRefused, match=r"ROLES_DIR is .*no such folder is there"):
        installed_roles(str(tmp_path / "missing"), [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a role is a mapping"),
        ("[1]", "a role is a mapping"),
        ("name: [", "no valid YAML"),
        ("name: x\nname: y\n", "line 2: 'name' stands there twice, first in line 1; keep one"),
        ("name: x\n", "instructions is missing"),
        ("name: Capital\ninstructions: x", "name must have small letters"),
        ("name: 7\ninstructions: x", "name must be a text; put it between quotes"),
        (f"{FINE}instruction: y", "instruction is no field of a role; write instructions"),
        (f"{FINE}colour: red", "colour is no field of a role; the fields are description"),
        (f"{FINE}limits: {{round: 3}}", "limits.round is no field of a role; write rounds"),
        (f"{FINE}limits: {{rounds: 0}}", "limits.rounds: Input should be greater than or equal to 1"),
        (f"{FINE}limits: {{rounds: '3'}}", "limits.rounds: Input should be a valid integer"),
        (f"{FINE}tools: shell", "tools: Input should be a valid list"),
        (f"{FINE}tools: [shell, shell]", "tools: 'shell' stands there twice"),
        (f"{FINE}model: qwen", "model must be SERVER/NAME, such as"),
        (f"{FINE}listens_to: [order..made]", "listens_to: each of them: send a type"),
        (f"{FINE}tools: [&a [x], *a]\nlimits: {tens('[{}]')}", "with what its aliases stand for, it has more than"),
        (f"{FINE}limits: {tens('{{<<: [{}]}}')}", "with what its aliases stand for, it has more than"),
        (f"{FINE}instructions: ''", "line 3: 'instructions' stands there twice"),
        (f"name: x\ninstructions: '{'x' * 20_001}'", "instructions: String should have at most 20000 characters"),
        (f"{FINE}description: '{'x' * 300_000}'", "more than 256 KiB"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_field_and_what_to_do(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "role.yaml"
    file.write_text(text)
    with pytest.raises(PluginRefused) as refused:
        installed_roles(str(tmp_path), [])
    assert str(refused.value).startswith(f"{file}: ")
    assert reason in str(refused.value)
    assert "The worker does not start with it" in str(refused.value)


def test_all_faults_of_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "role.yaml").write_text("name: 7\ncolour: red\n")
    with pytest.raises(PluginRefused) as refused:
        installed_roles(str(tmp_path), [])
    assert str(refused.value).count("role.yaml") == 3


def test_code_that_begins_anew_finds_the_state_as_it_was() -> None:
    state = {"count": 1, "names": ["a"]}
    first = TurnChanges(state)
    first.state["count"] += 1
    first.state["names"].append("b")
    assert TurnChanges(state).state == {"count": 1, "names": ["a"]}
    assert first.end().state == {"count": 2, "names": ["a", "b"]}
