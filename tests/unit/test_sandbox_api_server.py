"""What the answers of an API server mean, also those that a healthy one seldom gives."""

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from backplane.errors import Unavailable
from backplane.kubernetes.api import TRIES, ApiRefused, open_api_server
from tests.scripted_api import NOTHING, ScriptedApi, answer, raw, scripted_api
from tests.waiting import wait_until
from worker.sandbox.base import SandboxQuotaExceeded, SandboxRefused
from worker.sandbox.kubernetes.jobs import WorkerJobs, open_worker_jobs
from worker.sandbox.kubernetes.pod_state import EndReason

TOKEN = "a-token-that-nobody-may-see"
Script = Callable[..., tuple[ScriptedApi, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Script]:
    """Makes an API server that gives these answers, and a file with credentials for it."""
    with ExitStack() as stack:

        def start(*answers: bytes) -> tuple[ScriptedApi, str]:
            api = stack.enter_context(scripted_api(answers))
            config = {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": api.url}}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
            }
            file = tmp_path / "kubeconfig"
            file.write_text(yaml.safe_dump(config))
            return api, str(file)

        yield start


def status(code: int, message: str, reason: str = "", retry_after: str = "") -> bytes:
    return answer(code, {"kind": "Status", "reason": reason, "message": message}, retry_after)


def listed(*items: dict[str, Any], version: str = "1") -> bytes:
    return answer(200, {"metadata": {"resourceVersion": version}, "items": items})


def watched(*events: tuple[str, dict[str, Any]], rest: bytes = b"") -> bytes:
    lines = b"".join(json.dumps({"type": kind, "object": item}).encode() + b"\n" for kind, item in events)
    return raw(200, lines + rest)


def pod(version: str, state: str = "running", uid: str = "u1", **changed: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "step-1-abcde",
            "uid": uid,
            "resourceVersion": version,
            "ownerReferences": [{"kind": "Job", "name": "step-1"}],
        },
        "status": {"phase": "Running", "containerStatuses": [{"state": {state: {"exitCode": 5}}}]} | changed,
    }


JOB = {"metadata": {"name": "step-1"}, "spec": {}}
NEW = answer(201, JOB)
NO_PODS = listed()
QUIET = watched()


# --- single requests ---


async def test_the_token_is_sent_and_the_answer_given(server: Script) -> None:
    api, file = server(answer(200, {"a": 1}))
    async with open_api_server(file) as requests:
        assert await requests.call("GET", "/x", [("labelSelector", "a=b,c/d=e")]) == {"a": 1}
    assert api.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert api.requests[0].path.startswith("/x?labelSelector=a")


@pytest.mark.parametrize(
    "passing",
    [status(503, "no leader"), status(500, "etcdserver: timeout"), status(429, "too many", "", "1"), NOTHING],
)
async def test_what_may_pass_is_tried_again(server: Script, passing: bytes) -> None:
    api, file = server(passing, answer(200, {}))
    async with open_api_server(file) as requests:
        assert await requests.call("GET", "/x") == {}
    assert len(api.requests) == 2


async def test_credentials_that_have_run_out_are_read_again(server: Script) -> None:
    api, file = server(status(401, "Unauthorized"), answer(200, {}))
    async with open_api_server(file) as requests:
        renewed = Path(file).read_text().replace(TOKEN, "renewed")
        Path(file).write_text(renewed)
        await requests.call("GET", "/x")
    assert [request.headers["Authorization"] for request in api.requests] == [f"Bearer {TOKEN}", "Bearer renewed"]


async def test_what_does_not_pass_is_unavailable_with_the_servers_words(server: Script) -> None:
    api, file = server(status(503, "no leader"))
    async with open_api_server(file) as requests:
        with pytest.raises(Unavailable, match="no leader") as raised:
            await requests.call("GET", "/x")
    assert raised.value.part == "kubernetes"
    assert len(api.requests) == TRIES == requests.requests


async def test_a_no_is_not_asked_twice(server: Script) -> None:
    api, file = server(status(422, "spec is bad", "Invalid"))
    async with open_api_server(file) as requests:
        with pytest.raises(ApiRefused) as raised:
            await requests.call("GET", "/x")
    assert (raised.value.status, raised.value.reason, raised.value.message) == (422, "Invalid", "spec is bad")
    assert len(api.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>proxy</html>", b'"text"'])
async def test_an_answer_that_is_not_the_servers_is_reported_by_its_status(server: Script, body: bytes) -> None:
    _, file = server(raw(404, body))
    async with open_api_server(file) as requests:
        with pytest.raises(ApiRefused, match="404"):
            await requests.call("GET", "/x")


async def test_an_answer_that_cannot_be_read_is_tried_again(server: Script) -> None:
    _, file = server(raw(200, b"<html>proxy</html>"), answer(200, {"a": 1}))
    async with open_api_server(file) as requests:
        assert await requests.call("GET", "/x") == {"a": 1}


@pytest.mark.parametrize("bad", [status(401, "Unauthorized"), status(403, "no"), NOTHING, raw(200, b"{", length=9)])
async def test_no_error_shows_the_token(server: Script, bad: bytes) -> None:
    _, file = server(bad)
    async with open_api_server(file) as requests:
        with pytest.raises((Unavailable, ApiRefused)) as raised:
            await requests.call("GET", "/x")
        with pytest.raises((Unavailable, ApiRefused)) as of_socket:
            async with requests.exec("tools", "step-1-abcde", ["true"], container="sandbox"):
                pass
    for error in (raised, of_socket):
        shown = "".join(traceback.format_exception(error.value)) + repr(error.value.__cause__)
        assert TOKEN not in shown


async def test_lines_of_a_watch_may_be_of_any_length(server: Script) -> None:
    large = {"metadata": {"resourceVersion": "2"}, "text": "x" * 3_000_000}
    _, file = server(watched(("ADDED", large), ("DELETED", large)))
    async with open_api_server(file) as requests, aclosing(requests.watch("/x", [], "1")) as events:
        assert [(kind, len(item["text"])) async for kind, item in events] == [
            ("ADDED", 3_000_000),
            ("DELETED", 3_000_000),
        ]


async def test_a_watch_that_breaks_in_the_middle_is_unavailable(server: Script) -> None:
    _, file = server(raw(200, b'{"type": "ADDED", "obj', length=1000))
    async with open_api_server(file) as requests:
        events = requests.watch("/x", [], "1")
        with pytest.raises(Unavailable):
            await anext(events)


# --- the watch on pods ---


async def test_a_watch_goes_on_where_it_was(server: Script) -> None:
    bookmark = ("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
    api, file = server(listed(version="3"), watched(("ADDED", pod("5")), bookmark), QUIET)
    async with open_worker_jobs("tools", "w", file) as cluster:
        assert await cluster.started("step-1", 5, print) == "step-1-abcde"
        await wait_until(lambda: len(api.requests) > 2)
    assert "resourceVersion=3" in api.requests[1].path
    assert "resourceVersion=7" in api.requests[2].path


@pytest.mark.parametrize("turns", range(5))
async def test_a_start_that_is_cancelled_when_its_pod_changes_ends(server: Script, turns: int) -> None:
    """`turns`: of the event loop, between the change and the cancellation."""
    _, file = server(NOTHING)
    async with open_api_server(file) as requests:
        cluster = WorkerJobs(requests, "tools", "w")
        starting = asyncio.create_task(cluster.started("step-1", 60, print))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cluster.changed(pod("1", "waiting"))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting}, timeout=5)
        assert starting.cancelled()


async def test_a_watch_that_is_too_far_behind_begins_anew_and_misses_nothing(server: Script) -> None:
    gone = ("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
    api, file = server(listed(pod("1")), watched(gone), listed(pod("9", "terminated"), version="9"), QUIET)
    async with open_worker_jobs("tools", "w", file) as cluster:
        end = await cluster.ended("step-1")
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 5)
    assert "watch=true" not in api.requests[2].path


async def test_a_watch_outlives_an_event_that_nobody_can_read(server: Script) -> None:
    odd = raw(200, b'{"no": "event"}\n')
    _, file = server(listed(), odd, listed(pod("9")), QUIET)
    async with open_worker_jobs("tools", "w", file) as cluster:
        assert await cluster.started("step-1", 5, print) == "step-1-abcde"


async def test_a_pod_that_is_missing_from_a_new_list_has_ended(server: Script) -> None:
    gone = ("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
    _, file = server(listed(pod("1")), watched(gone), NO_PODS, status(404, "no such job"))
    async with open_worker_jobs("tools", "w", file) as cluster:
        assert (await cluster.ended("step-1")).reason is EndReason.DELETED


async def test_a_second_pod_of_a_job_is_not_taken_for_the_first(server: Script) -> None:
    events = watched(("MODIFIED", pod("2", "terminated")), ("ADDED", pod("3", uid="u2")), ("DELETED", pod("4")))
    _, file = server(listed(pod("1")), events, QUIET)
    async with open_worker_jobs("tools", "w", file) as cluster:
        assert (await cluster.ended("step-1")).exit_code == 5


async def test_a_watch_that_is_not_allowed_is_reported_at_the_start(server: Script) -> None:
    _, file = server(status(403, 'pods is forbidden: cannot list resource "pods"', "Forbidden"))
    with pytest.raises(SandboxRefused, match="RoleBinding"):
        async with open_worker_jobs("tools", "w", file):
            pass


# --- what a create may be answered ---


def job_of(name: str = "step-1") -> dict[str, Any]:
    return {"metadata": {"name": name}}


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (403, 'jobs.batch "x" is forbidden: exceeded quota: q, used: count/jobs.batch=8', SandboxQuotaExceeded),
        (403, 'User "w" cannot create resource "jobs"', SandboxRefused),
        (422, "spec.template: Invalid value", SandboxRefused),
    ],
)
async def test_a_create_that_is_refused_says_what_kind_of_no_it_is(
    server: Script, code: int, message: str, expected: type[Exception]
) -> None:
    _, file = server(status(code, message))
    async with open_api_server(file) as requests:
        from_there = WorkerJobs(requests, "tools", "w")
        with pytest.raises(expected, match=message.split(":")[0]) as raised:
            await from_there.create(job_of())
    assert type(raised.value) is expected


async def test_a_create_waits_for_the_old_job_of_that_name_to_go(server: Script) -> None:
    going = status(409, "object is being deleted: jobs.batch already exists", "AlreadyExists")
    api, file = server(going, going, NEW)
    async with open_api_server(file) as requests:
        assert await WorkerJobs(requests, "tools", "w").create(job_of())
    assert len(api.requests) == 3


async def test_a_create_whose_answer_was_lost_finds_its_job(server: Script) -> None:
    _, file = server(NOTHING, status(409, 'jobs.batch "step-1" already exists', "AlreadyExists"))
    async with open_api_server(file) as requests:
        assert not await WorkerJobs(requests, "tools", "w").create(job_of())
