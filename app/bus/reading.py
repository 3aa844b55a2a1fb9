"""From a request to events: the three ways in which CloudEvents come by HTTP, and data that is a body."""

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers

from app.edge.json_body import json_of
from app.schemas.fields import storable
from backplane.domain.bus import BATCH_MAX, SPEC_VERSION, CloudEvent, cloud_event
from backplane.errors import InvalidInput

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
JSON = "application/json"
_HEADER = "ce-"


def media_type(headers: Headers) -> str:
    """Without its parameters, in small letters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def events_of(headers: Headers, body: bytes) -> CloudEvent | list[CloudEvent]:
    """The event of a call, or the events of a batch. Raises InvalidInput, TooLarge and BodyRefused."""
    kind = media_type(headers)
    if kind == BATCH:
        return _batch(await json_of(body))
    # What says that it is a whole event is one, whatever its headers are.
    attributes = {} if kind == STRUCTURED else _attributes_of(headers)
    if attributes:
        return _event({**attributes, **await data_of(body, headers.get("content-type", ""))})
    if kind not in (STRUCTURED, JSON):
        raise InvalidInput(
            f"Content-Type: send {STRUCTURED}, {BATCH} or {JSON}; or the event's attributes in headers such as ce-type",
            field="Content-Type",
        )
    value = await json_of(body)
    if kind == STRUCTURED:
        return _event(value)
    if isinstance(value, list):
        return _batch([_with_version(each) for each in value])
    return _event(_with_version(value))


def _with_version(value: Any) -> Any:
    return {"specversion": SPEC_VERSION, **value} if isinstance(value, dict) else value


def _batch(value: Any) -> list[CloudEvent]:
    if not isinstance(value, list) or not 1 <= len(value) <= BATCH_MAX:
        raise InvalidInput(f"the body: send a list of 1 to {BATCH_MAX} events", field="body")
    return [_event(each, f"events.{number}") for number, each in enumerate(value)]


def _event(value: Any, field: str = "") -> CloudEvent:
    """Raises InvalidInput, TooLarge."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{field or 'the body'}: send an event, which is a JSON object", field=field or "body")
    if "data" in value:
        _check_data(value["data"], f"{field}.data".removeprefix("."))
    return cloud_event(value, field=field)


def _check_data(data: Any, field: str = "data") -> None:
    try:
        storable(data)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}", field=field) from None


def _attributes_of(headers: Headers) -> dict[str, str]:
    """Of CloudEvents' binary mode, in which values are percent-encoded UTF-8."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not name.startswith(_HEADER):
            continue
        attribute = name.removeprefix(_HEADER)
        if attribute in found:
            raise InvalidInput(f"{name}: this header stands twice; keep one", field=name)
        if attribute in ("data", "data_base64", "datacontenttype"):
            raise InvalidInput(f"{name}: the data are the body, and Content-Type says what they are", field=name)
        try:
            found[attribute] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InvalidInput(f"{name}: send percent-encoded UTF-8", field=name) from None
    return found


async def data_of(body: bytes, content_type: str) -> Mapping[str, Any]:
    """Data that came as a body, as an event has them: JSON, text, or bytes in base64. Raises InvalidInput and
    BodyRefused."""
    named = {"datacontenttype": content_type} if content_type else {}
    if not body:
        return named
    kind = content_type.partition(";")[0].strip().lower()
    data: Any
    if kind == JSON or kind.endswith("+json"):
        data = await json_of(body)
    else:
        try:
            data = body.decode()
        except UnicodeDecodeError:
            return {**named, "data_base64": base64.b64encode(body).decode()}
    _check_data(data)
    return {**named, "data": data}
