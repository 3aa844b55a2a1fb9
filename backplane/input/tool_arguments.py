"""What holds for the arguments of every step, whoever looks at them: the worker that has the tools, or the API that
knows them by what workers published."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from backplane.domain.plans import REFERENCE
from backplane.domain.validation_messages import near
from backplane.errors import Fault


def reference_faults(arguments: Mapping[str, Any], is_program: Callable[[str], bool], field: str) -> Iterator[Fault]:
    """References where none may stand: in what is carried out or obeyed, and in keys."""
    for name, value in arguments.items():
        if refers(value) and is_program(name):
            where = f"{field}.{name}"
            yield Fault(
                where,
                f"{where}: a result of another step would be carried out here, as a part of the program or the order; "
                'pass it through environment ({"TEXT": "${steps.ID.output}"}, then "$TEXT"), through the inputs of an '
                "agent, or write it to a file",
            )
    if (key := _key_that_refers(arguments)) is not None:
        yield Fault(field, f"{field}: the key {key!r} refers to a step; only values may")


def refers(value: Any) -> bool:
    match value:
        case str():
            return REFERENCE.search(value) is not None
        case dict():
            return any(map(refers, value.values()))
        case list() | tuple():
            return any(map(refers, value))
    return False


def unknown_tool(name: str, names: Collection[str], field: str, *, with_hint: bool = True) -> Fault:
    """`with_hint`: whether a like name is searched, which takes some milliseconds."""
    there_are = ", ".join(names) or "none"
    hint = near(name, names) if with_hint else ""
    return Fault(field, f"{field}: there is no tool {name!r}{hint}; there are {there_are}")


def unknown_argument(tool: str, name: str, names: Collection[str], *, with_hint: bool = True) -> str:
    """`with_hint`: as of `unknown_tool`."""
    hint = near(name, names) if with_hint else ""
    return f"the tool {tool} does not take this; it takes {', '.join(names)}{hint}"


def _key_that_refers(value: Any) -> str | None:
    match value:
        case dict():
            for key, inner in value.items():
                if REFERENCE.search(str(key)):
                    return str(key)
                if (found := _key_that_refers(inner)) is not None:
                    return found
        case list() | tuple():
            for inner in value:
                if (found := _key_that_refers(inner)) is not None:
                    return found
    return None
