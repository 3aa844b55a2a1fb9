"""What the client does when something breaks: it repeats what is safe to repeat, and a stream misses and doubles
nothing."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from agentctl.api.address import find_token, find_url
from agentctl.api.api_error import ApiError
from agentctl.api.client import Client
from agentctl.exit_codes import CommandError, ExitCode
from tests.scripted_api import NOTHING, ScriptedApi, answer, event_stream, problem, raw, scripted_api, stream

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"

Script = Callable[..., ScriptedApi]


@pytest.fixture
def script() -> Iterator[Script]:
    with ExitStack() as stack:
        yield lambda *answers: stack.enter_context(scripted_api(answers))


@pytest.fixture
async def client_of() -> Any:
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": "Bearer agt_x"}) as http:

        def make(api: ScriptedApi, notes: list[str] | None = None) -> Client:
            http.base_url = httpx.URL(api.url)
            notify = notes.append if notes is not None else lambda _: None
            return Client(http, notify, call_pauses=(0, 0), stream_pauses=(0, 0, 0))

        yield make


def event(number: int, kind: str = "log", **data: Any) -> dict[str, Any]:
    return {"id": number, "run_id": RUN, "type": kind, "at": "2026-01-01T00:00:00+00:00", "data": data}


END = event(5, "end", status="completed")


async def numbers(client: Client, after: int = 0) -> list[int]:
    return [event["id"] async for event in client.events(RUN, after)]


async def test_a_stream_that_is_cut_goes_on_after_the_last_event_seen(script: Script, client_of: Any) -> None:
    api = script(stream(event(1), event(2), whole=False), stream(event(3), event(4), END))
    notes: list[str] = []
    assert await numbers(client_of(api, notes)) == [1, 2, 3, 4, 5]
    assert [request.headers.get("Last-Event-ID") for request in api.requests] == [None, "2"]
    assert "after event 2" in notes[0]


async def test_events_that_come_again_after_a_reconnect_are_dropped(script: Script, client_of: Any) -> None:
    api = script(stream(event(1), event(2), whole=False), stream(event(1), event(2), event(3), END))
    assert await numbers(client_of(api)) == [1, 2, 3, 5]


async def test_a_stream_that_ends_in_order_but_before_the_run_is_opened_again(script: Script, client_of: Any) -> None:
    api = script(stream(event(1)), stream(END))
    assert await numbers(client_of(api)) == [1, 5]


def feed(*frames: str, whole: bool = True) -> bytes:
    body = "".join(f"{frame}\n\n" for frame in frames).encode()
    return event_stream(body, whole=whole)


async def test_the_stream_of_all_runs_goes_on_behind_the_cursor_it_began_with_or_saw_last(
    script: Script, client_of: Any
) -> None:
    data = [f"data: {json.dumps(event(number))}" for number in (1, 2)]
    api = script(
        feed("id: 7-1", whole=False),
        feed(f"id: 8-4\n{data[0]}", ": nothing new", whole=False),
        feed(f"id: 8-5\n{data[1]}"),
    )
    events = client_of(api).all_events("now")
    assert [await anext(events), await anext(events)] == [("8-4", event(1)), ("8-5", event(2))]
    await events.aclose()
    assert [request.headers.get("Last-Event-ID") for request in api.requests] == [None, "7-1", "8-4"]
    assert {request.path for request in api.requests} == {"/agent/events?after=now"}


async def test_a_position_has_no_number_and_moves_no_cursor(script: Script, client_of: Any) -> None:
    place = event(0, "position", position=2, estimated_wait_seconds=1.0)
    api = script(stream(event(1), place, whole=False), stream(place, END))
    kinds = [event["type"] async for event in client_of(api).events(RUN)]
    assert kinds == ["log", "position", "position", "end"]
    assert api.requests[1].headers["Last-Event-ID"] == "1"


async def test_an_end_in_the_middle_of_a_retried_runs_stream_is_not_its_end(script: Script, client_of: Any) -> None:
    api = script(stream(event(1), event(2, "end", status="failed"), event(3, "status", status="queued"), END))
    assert await numbers(client_of(api)) == [1, 2, 3, 5]
    assert len(api.requests) == 1


async def test_nothing_more_to_come_ends_the_stream(script: Script, client_of: Any) -> None:
    assert await numbers(client_of(script(raw(204, b""))), after=5) == []


async def test_a_stream_that_never_stands_again_is_given_up(script: Script, client_of: Any) -> None:
    api = script(stream(event(1), whole=False), NOTHING)
    with pytest.raises(CommandError) as failure:
        await numbers(client_of(api))
    assert failure.value.exit_code is ExitCode.UNREACHABLE
    assert len(api.requests) == 1 + 3


async def test_a_stream_waits_for_a_part_that_is_down(script: Script, client_of: Any) -> None:
    api = script(problem(503, "part_unavailable", "Redis does not answer.", retry_after="0"), stream(END))
    assert await numbers(client_of(api)) == [5]


async def test_a_stream_that_is_refused_is_not_asked_for_again(script: Script, client_of: Any) -> None:
    api = script(problem(404, "not_found", "There is no such run."))
    with pytest.raises(ApiError, match="no such run") as failure:
        await numbers(client_of(api))
    assert (failure.value.exit_code, len(api.requests)) == (ExitCode.REFUSED, 1)


async def test_a_create_without_an_answer_is_sent_again_under_the_same_key(script: Script, client_of: Any) -> None:
    api = script(NOTHING, answer(201, {"run_id": RUN, "status": "queued"}))
    assert (await client_of(api).create({"prompt": "x"}, start=True))["run_id"] == RUN
    first, second = api.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.body == second.body


async def test_two_creates_have_two_keys(script: Script, client_of: Any) -> None:
    api = script(answer(201, {"run_id": RUN, "status": "queued"}))
    client = client_of(api)
    await client.create({"prompt": "x"}, start=True)
    await client.create({"prompt": "x"}, start=True)
    assert api.requests[0].headers["Idempotency-Key"] != api.requests[1].headers["Idempotency-Key"]


async def test_a_retry_that_may_have_arrived_is_not_sent_again(script: Script, client_of: Any) -> None:
    api = script(NOTHING, answer(200, {"run_id": RUN, "status": "queued"}))
    with pytest.raises(CommandError) as failure:
        await client_of(api).execute("retry", RUN)
    assert (failure.value.exit_code, len(api.requests)) == (ExitCode.UNREACHABLE, 1)


async def test_a_read_is_tried_again_until_the_part_is_back(script: Script, client_of: Any) -> None:
    down = problem(503, "part_unavailable", "The database does not answer.", retry_after="0")
    api = script(down, NOTHING, answer(200, {"run_id": RUN}))
    notes: list[str] = []
    assert await client_of(api, notes).run(RUN) == {"run_id": RUN}
    assert notes[0].startswith("The database does not answer.")


@pytest.mark.parametrize("action", ["start", "retry"])
async def test_a_call_that_came_too_often_is_made_again_after_a_while(
    script: Script, client_of: Any, action: str
) -> None:
    api = script(problem(429, "rate_limited", "This token calls too often.", retry_after="0"), answer(200, {"a": 1}))
    assert await client_of(api).execute(action, RUN) == {"a": 1}
    assert len(api.requests) == 2


async def test_a_part_that_stays_down_is_said_with_its_own_words(script: Script, client_of: Any) -> None:
    api = script(problem(503, "part_unavailable", "Redis does not answer.", retry_after="0"))
    with pytest.raises(ApiError, match="Redis does not answer") as failure:
        await client_of(api).queue()
    assert (failure.value.exit_code, len(api.requests)) == (ExitCode.UNREACHABLE, 3)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"text"'])
async def test_an_answer_of_something_else_is_no_api(script: Script, client_of: Any, body: bytes) -> None:
    with pytest.raises(CommandError, match="AGENT_URL") as failure:
        await client_of(script(raw(200, body))).queue()
    assert failure.value.exit_code is ExitCode.UNREACHABLE


async def test_an_error_page_of_a_proxy_is_an_error_with_its_status(script: Script, client_of: Any) -> None:
    with pytest.raises(ApiError, match="answered 403"):
        await client_of(script(raw(403, b"<html>forbidden"))).queue()


async def test_a_file_is_sent_whole_again_when_the_first_try_broke(script: Script, client_of: Any) -> None:
    api = script(NOTHING, answer(201, {"path": "a b/ü.txt", "size": 5}))
    await client_of(api).upload(RUN, "a b/ü.txt", io.BytesIO(b"hello"), 5)
    assert [request.body for request in api.requests] == [b"hello", b"hello"]
    assert api.requests[1].path == f"/agent/runs/{RUN}/files/a%20b/%C3%BC.txt"
    assert api.requests[1].headers["Content-Length"] == "5"


async def test_what_comes_from_a_pipe_is_sent_in_chunks_and_once(script: Script, client_of: Any) -> None:
    api = script(answer(201, {"path": "x", "size": 5}))
    await client_of(api).upload(RUN, "x", io.BytesIO(b"hello"), None)
    assert (api.requests[0].body, "Content-Length" in api.requests[0].headers) == (b"hello", False)


async def test_a_way_up_in_a_path_reaches_the_server_and_is_not_resolved_before(script: Script, client_of: Any) -> None:
    api = script(problem(422, "invalid_path", "no"))
    with pytest.raises(ApiError):
        async with client_of(api).download(RUN, "../../me"):
            pytest.fail("there is no such file")
    assert api.requests[0].path == f"/agent/runs/{RUN}/files/%2E%2E/%2E%2E/me"


async def test_a_download_that_breaks_off_is_an_error(script: Script, client_of: Any) -> None:
    with pytest.raises(CommandError) as failure:
        async with client_of(script(raw(200, b"half", length=8))).download(RUN, "x") as chunks:
            assert [chunk async for chunk in chunks]
    assert failure.value.exit_code is ExitCode.UNREACHABLE


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_an_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(CommandError) as failure:
        find_url({"AGENT_URL": url})
    assert failure.value.exit_code is ExitCode.USAGE


def test_the_token_is_that_of_the_environment_else_of_the_file(tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("agt_file\n")
    assert find_token({"AGENT_TOKEN": " agt_environment "}, file) == "agt_environment"
    assert find_token({}, file) == "agt_file"


@pytest.mark.parametrize("content", [None, b"", b"two words", "agt_\u00fc".encode(), b"agt_\x00"])
def test_without_a_usable_token_nothing_is_sent(tmp_path: Any, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError) as failure:
        find_token({}, file)
    assert failure.value.exit_code is ExitCode.USAGE
