"""No request takes a text that a database does not take: one with a NUL character."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

import app.main  # noqa: F401 - all requests are declared then
from app.schemas.fields import StrictRequest

CHECKED_LATER = {
    "resource": "it must be one of those that the settings name",
    "secret": "of a hook, which has printable characters alone",
    "token": "of a session, of which only a digest is looked up",
    "value": "of a secret, which is sealed",
}


def fields_of(kind: type[StrictRequest]) -> Iterator[tuple[str, FieldInfo]]:
    for request in kind.__subclasses__():
        yield from ((f"{request.__name__}.{name}", field) for name, field in request.model_fields.items())
        yield from fields_of(request)


FIELDS = {name: field for name, field in fields_of(StrictRequest) if name.split(".")[1] not in CHECKED_LATER}


def takes(field: FieldInfo, value: Any) -> bool:
    annotated: Any = Annotated[field.annotation, *field.metadata, "as the request has it"]
    try:
        TypeAdapter(annotated).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_request_takes_no_text_with_a_nul_character(name: str) -> None:
    assert not any(takes(FIELDS[name], value) for value in ("a\0b", ["a\0b"], {"a\0b": "a"}))
