"""The one table from errors to HTTP: every failure is `application/problem+json` (RFC 9457) with a stable `code`."""

import http
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from app.edge.json_body import BodyRefused
from app.edge.origin import HEADERS
from app.edge.turns import give_back
from app.kept_answer import KeptAnswer
from app.schemas.description import Description
from app.schemas.problems import FaultView, Problem
from backplane import errors
from backplane.domain.validation_messages import HINTS, sentence_of
from backplane.errors import FIELD_CHARS, dotted, printable

STATUS_OF: tuple[tuple[type[errors.PlatformError], int], ...] = (
    (errors.InvalidInput, 422),
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.BudgetExhausted, 409),
    (errors.TooLarge, 413),
    (errors.RateLimited, 429),
    (errors.TooManyWaiting, 429),
    (errors.Unavailable, 503),
    (errors.PartRefuses, 503),
)

TAGS = {
    "action": ("create", "run", "start", "cancel", "retry", "fork", "replay", "status", "validate"),
    "decision": ("approve", "reject", "answer"),
}
"""The field by which the members of a union of requests differ, and its values."""
_FIELD_PATH = re.compile(r"[a-z_]+(\.[a-z_]+)*")

_MEANING = {
    401: "No bearer token, or one that is unknown or revoked.",
    403: "The token's tier does not allow it.",
    404: "There is no such thing, or it belongs to another user.",
    409: "The state it is in does not allow this; or there is too little left for it.",
    413: "Over a limit; the detail names it.",
    416: "The range lies outside the file.",
    422: "A value is not accepted; `field` names it.",
    429: "Too much at once: calls of this token, or runs, streams or files of its user; try again after Retry-After "
    "seconds.",
    503: "The queue is full, or a part of the platform does not answer; try again after Retry-After seconds.",
}
_EXAMPLES = {
    401: ("unauthenticated", "send the header `Authorization: Bearer TOKEN`"),
    403: ("forbidden", "this is for users of the tier admin, and ada has the tier standard"),
    404: ("not_found", "there is no run 01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"),
    409: ("transition_not_allowed", "run 01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c is cancelled and cannot become queued"),
    413: ("too_large", "the body is larger than 1048576 bytes (REQUEST_MAX_BYTES)"),
    416: ("range_not_satisfiable", "the file has 14 bytes; ask for a range inside"),
    422: ("invalid_input", "limit: Input should be less than or equal to 200"),
    429: ("rate_limited", "this token calls more often than API_RATE_PER_SECOND allows"),
    503: ("part_unavailable", "the database does not answer"),
}

log = structlog.get_logger()


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these errors."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": _MEANING[status],
            "content": {"application/problem+json": {"schema": schema, "example": _example(status)}},
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status in (429, 503) else {}),
        }
        for status in (401, *statuses, 429, 503)
    }


def _example(status: int) -> dict[str, Any]:
    code, detail = _EXAMPLES[status]
    title = http.HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}


DETAIL_CHARS = 2000
FAULT_CHARS = 500
"""The longest detail of one fault where there are several, in characters."""


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    faults: Sequence[errors.Fault] = (),
) -> JSONResponse:
    body = Problem(
        type="about:blank",
        title=http.HTTPStatus(status).phrase,
        status=status,
        code=code,
        # A name that the caller made up may be part of either, and of any length.
        detail=printable(detail[:DETAIL_CHARS]),
        field=printable(field[:FIELD_CHARS]) if field else None,
        errors=[fault_view(fault) for fault in faults] if len(faults) > 1 else None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/problem+json",
    )


def fault_view(fault: errors.Fault) -> FaultView:
    field, detail = (fault.field or "")[:FIELD_CHARS], fault.message[:FAULT_CHARS]
    return FaultView(field=printable(field) or None, detail=printable(detail), line=fault.line)


def of_platform_error(error: errors.PlatformError) -> JSONResponse:
    status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
    headers = {}
    if isinstance(error, errors.Unavailable | errors.RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    field = error.field if isinstance(error, errors.InvalidInput) else None
    faults = error.faults if isinstance(error, errors.InvalidInput) else ()
    return problem(status, error.code, error.message, field=field, headers=headers, faults=faults)


def of_validation(error: RequestValidationError, body: Any = None) -> JSONResponse:
    """The first fault is the problem, and all of them as its `errors`. No value is repeated. `body` is the type
    of the request's body."""
    found = error.errors()
    fault = found[0]
    if fault["type"] == "json_invalid":
        return problem(422, "malformed_json", f"the body is not JSON: {fault.get('ctx', {}).get('error', '')}")
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        name = fault["ctx"]["discriminator"].strip("'")
        return problem(422, "invalid_input", f"{name}: send one of {', '.join(TAGS[name])}", field=name)
    if not _place(fault) and fault["type"] == "string_unicode":
        # Where the validator cannot read the name of a field, the name is its input.
        detail = "the body: the name of a field contains a lone surrogate, which is no character; send valid UTF-8"
        return problem(422, "invalid_input", detail, field=str(fault.get("input") or "body"))
    if not _place(fault) and fault["type"] == "value_error":
        # A rule about several fields. Its words begin with the one to change.
        detail = sentence_of(fault)
        name = detail.partition(": ")[0]
        return problem(422, "invalid_input", detail, field=name if _FIELD_PATH.fullmatch(name) else "body")
    if not _place(fault):
        detail = "the body: send a JSON object, with the header Content-Type: application/json"
        return problem(422, "invalid_input", detail, field="body")
    shown = enumerate(found[: errors.FAULTS_SHOWN])
    faults = [_fault_of(each, body, with_hint=number < HINTS) for number, each in shown]
    return problem(422, "invalid_input", faults[0].message, field=faults[0].field, faults=faults)


def _fault_of(found: Mapping[str, Any], body: Any, *, with_hint: bool) -> errors.Fault:
    [first, *others] = _place(found)
    field = dotted(first, others)
    below, kind = {**found, "loc": found["loc"][1:]}, body if found["loc"][0] == "body" else None
    return errors.Fault(field, f"{field}: {sentence_of(below, kind, with_hint=with_hint)}")


def _place(found: Mapping[str, Any]) -> list[str]:
    place = [str(part) for part in found["loc"]]
    if place and place[0] in ("body", "query", "path", "header"):
        place = place[1:]
    # Under the body stands the tag, which distinguishes the requests of the union and is no field.
    if found["loc"][0] == "body" and place and any(place[0] in tags for tags in TAGS.values()):
        place = place[1:]
    return place


async def of_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """What the web framework refuses by itself, before any route is asked."""
    match error.status_code:
        case 400:
            detail = "the body is not JSON: it is no UTF-8, nested too deeply, or has a number of too many digits"
            return problem(422, "malformed_json", detail)
        case 404:
            return problem(404, "not_found", "there is nothing at this path; GET /docs shows what there is")
        case 405:
            kept: KeptAnswer[Description] = request.app.state.description
            allowed = _methods(request.url.path, (await kept.get()).methods, error)
            detail = f"this path does not take this method; it takes {allowed}"
            return problem(405, "method_not_allowed", detail, headers={"Allow": allowed})
    return problem(error.status_code, "http_error", str(error.detail), headers=error.headers)


def _methods(path: str, described: Mapping[str, frozenset[str]], error: HTTPException) -> str:
    """The methods that the path takes. The framework names those of one route only, where several have the same
    path."""
    # `/accounts/transfer` is no account of that name: a path with fewer parameters goes before one with more.
    fitting = sorted((each for each in described if _pattern(each).match(path)), key=lambda each: each.count("{"))
    if not fitting:
        return (error.headers or {}).get("Allow", "")
    methods = described[fitting[0]]
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """The pattern of a path of the API's description; there are few of them, so all are kept."""
    return compile_path(path)[0]


def install(app: FastAPI) -> None:
    @app.exception_handler(errors.PlatformError)
    async def _(request: Request, error: errors.PlatformError) -> JSONResponse:
        if isinstance(error, errors.TooManyStreams | errors.TooManyTransfers | errors.QueueFull | errors.MailboxFull):
            give_back(request.scope)
            await request.app.state.authenticator.pause(request.scope)
        return of_platform_error(error)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        body = getattr(request.scope.get("route"), "body_field", None)
        return of_validation(error, body.field_info.annotation if body else None)

    @app.exception_handler(BodyRefused)
    async def _(_: Request, error: BodyRefused) -> JSONResponse:
        return problem(422, error.code, str(error.detail), field=error.place)

    @app.exception_handler(ClientDisconnect)
    async def _(_: Request, error: ClientDisconnect) -> JSONResponse:
        # Nobody is left to read it; what counts is that this is no fault of the platform.
        return problem(400, "client_disconnected", "the connection ended before the body; send it again")

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return await of_http_exception(request, error)

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed by a fault of the platform", path=request.url.path, exc_info=error)
        # Answered outside of all middleware, so what that adds is added here.
        detail = "a fault of the platform; the API's log has the details"
        return problem(500, "internal_error", detail, headers=HEADERS)
