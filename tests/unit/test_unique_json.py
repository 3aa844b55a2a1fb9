"""JSON in which no object has a name twice."""

import json
import tracemalloc
from importlib import import_module
from pkgutil import iter_modules

import pytest
from fastapi.routing import APIRoute

from app import routes
from app.edge.json_body import JsonRoute
from backplane.errors import FIELD_CHARS
from backplane.input.unique_json import DuplicateName, loads
from worker.llm.untrusted_json import NotJson, find_object, parse_object

TWICE = {
    "at the top": ('{"a": 1, "a": 1}', "a"),
    "in an object below": ('{"plan": {"steps": 1, "steps": 2}}', "plan.steps"),
    "in an item of a list": ('{"steps": [{}, {"approval": true, "approval": false}]}', "steps.1.approval"),
    "in a list of lists": ('[[{"x": 1, "x": 2}]]', "0.0.x"),
    "above and below: the outer one": ('{"a": {"b": 1, "b": 2}, "c": 1, "c": 2}', "c"),
    "in a value that is lost by it": ('{"a": {"b": 1, "b": 2}, "a": 1}', "a"),
    "three times": ('{"a": 1, "a": 2, "a": 3}', "a"),
    "written in two ways": ('{"approval": true, "\\u0061pproval": false}', "approval"),
    "an empty name": ('{"": 1, "": 2}', ""),
}


@pytest.mark.parametrize(("text", "place"), TWICE.values(), ids=TWICE.keys())
def test_a_name_that_stands_twice_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(DuplicateName) as refused:
        loads(text.encode())
    assert refused.value.place == place


@pytest.mark.parametrize(
    "value",
    [{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}, [], "text", 1.5, None, {"A": 1, "a": 2, "é": 1, "e\u0301": 2}],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_without_such_a_name_is_read_as_it_always_was(value: object, encoding: str) -> None:
    body = json.dumps(value, ensure_ascii=False).encode(encoding)
    assert loads(body) == json.loads(body) == value


@pytest.mark.slow
def test_the_place_is_found_in_time_that_grows_with_the_length() -> None:
    many = ",".join("[]" for _ in range(300_000))
    with pytest.raises(DuplicateName) as refused:
        loads(f'{{"a": [{many}], "b": {{"c": 1, "c": 2}}}}'.encode())
    assert refused.value.place == "b.c"


LONG_NAMES = {
    "a long name above many objects": '{"m": {"' + "m" * 100_000 + '": [' + "{}," * 8_000 + '{"q": 1, "q": 2}]}}',
    "long names in many levels": f'{{"{"m" * 4_000}": ' * 450 + '{"q": 1, "q": 2}' + "}" * 450,
    "many long names of one object": "{"
    + ",".join(f'"{at:0900}": {{}}' for at in range(1000))
    + ',"q": {"q":1,"q":2}}',
}


@pytest.mark.parametrize("text", LONG_NAMES.values(), ids=LONG_NAMES.keys())
def test_the_place_is_found_in_memory_that_grows_with_the_length(text: str) -> None:
    body = text.encode()
    tracemalloc.start()
    try:
        with pytest.raises(DuplicateName) as refused:
            loads(body)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(body) + 40_000_000
    finally:
        tracemalloc.stop()
    assert len(refused.value.place) <= FIELD_CHARS
    assert len(str(refused.value)) < FIELD_CHARS + 100


@pytest.mark.parametrize(
    "answer",
    [
        '{"steps": [], "steps": [{"id": "a"}]}',
        'Here it is: {"steps": [{"id": "a", "tool": "shell", "approval": true, "approval": false}]}',
    ],
)
def test_a_name_that_stands_twice_in_a_plan_of_a_model_is_refused(answer: str) -> None:
    with pytest.raises(NotJson, match=r"'(steps|approval)' stands twice"):
        find_object(answer, lambda value: "steps" in value)


def test_a_name_that_stands_twice_in_a_tool_call_of_a_model_is_refused() -> None:
    with pytest.raises(NotJson, match="'path' stands twice"):
        parse_object('{"path": "a", "path": "b"}')


def test_every_route_with_a_body_of_json_reads_it_so() -> None:
    modules = [import_module(f"app.routes.{found.name}") for found in iter_modules(routes.__path__)]
    found = [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]
    with_body = {f"{route.methods} {route.path}": isinstance(route, JsonRoute) for route in found if route.body_field}
    assert len(with_body) >= 5
    assert [name for name, reads_so in with_body.items() if not reads_so] == []
