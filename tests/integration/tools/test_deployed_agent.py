"""Runs that a deployed agent carries out: what is sent, what is shown, and what a failure does."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.deployments import DeploymentStatus, Rollout
from backplane.domain.runs import Run, RunStatus
from backplane.domain.users import Tier
from backplane.errors import Conflict, NotFound
from tests.attack.outside import cuts, ended, is_uncertain, record, status
from tests.deployed_calls import IDEMPOTENT, all_at_once, deployed, in_pieces, in_turn
from tests.integration.tools.site import Site
from tests.integration.worker.conftest import StartPlatform, start_platform
from tests.platform.workers import Platform, worker
from tests.waiting import wait_until

__all__ = ["start_platform"]

NDJSON = "application/x-ndjson"
DONE = b'{"result": {"pages": 2}}\n'
RETRY = {"max_attempts": 2, "backoff_seconds": 0.01}


@pytest.fixture
async def calling(start_platform: StartPlatform) -> AsyncIterator[Platform]:
    """With a worker, and deployments switched on."""
    platform = await start_platform(deploy_target="container", retry_base_seconds=0.01)
    async with worker(platform.settings):
        yield platform


def step(**more: Any) -> dict[str, Any]:
    arguments = {"deployment": "writer", **more.pop("arguments", {})}
    return {"id": "agent", "tool": "deployed_agent", "arguments": arguments, **more}


async def called(platform: Platform, **more: Any) -> Run:
    """The run of one step that calls the agent, at its end."""
    return await ended(platform, await platform.submit(step(**more), max_retries=0))


async def test_a_run_names_a_deployment_and_has_its_lines_and_its_result(calling: Platform, site: Site) -> None:
    made = await deployed(calling.resources.store, calling.user, site.url(""), **IDEMPOTENT)
    site.pages["/run"] = in_pieces(all_at_once(b'{"log": "writing"}\n', DONE), NDJSON)
    given = {"week": 48, "as": "${steps.none.output} $${steps.x"}
    run_id = await calling.submit(deployment="writer", input=given, prompt="a report")
    await calling.completed(run_id)
    assert await calling.lines(run_id) == ["writing"]
    result = (await record(calling, run_id, "agent")).result
    assert result is not None
    assert (result["value"], json.loads(result["output"])) == ({"pages": 2}, {"pages": 2})
    [asked] = site.asked
    body = json.loads(asked.body)
    assert body == {"run_id": run_id, "step_id": "agent", "attempt": 1, "input": given}
    assert asked.headers["idempotency-key"]
    run = await calling.run(run_id)
    assert run.given_plan is not None
    [planned] = run.given_plan["steps"]
    assert (planned["arguments"]["deployment"], planned["repeatable"]) == (made.id, True)


async def test_lines_are_seen_the_moment_they_come(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: begun\n\n"
        await go_on.wait()
        yield b'data: {"result": 1}\n\n'

    site.pages["/run"] = in_pieces(pieces, "text/event-stream")
    run_id = await calling.submit(step())

    async def is_seen() -> bool:
        return "begun" in await calling.lines(run_id)

    await wait_until(is_seen)
    assert (await calling.run(run_id)).status is RunStatus.RUNNING
    go_on.set()
    await calling.completed(run_id)


@pytest.mark.parametrize("layer", ["step", "run"])
async def test_the_same_key_comes_at_each_try(calling: Platform, site: Site, layer: str) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    good = in_pieces(all_at_once(DONE), NDJSON)
    site.pages["/run"] = in_turn(status("500 Internal Server Error"), cuts, good)
    policy: dict[str, Any] = {"retry": {**RETRY, "max_attempts": 3}} if layer == "step" else {}
    run_id = await calling.submit(step(repeatable=True, **policy), max_retries=0 if layer == "step" else 2)
    await calling.completed(run_id)
    assert len(site.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in site.asked}) == 1


@pytest.mark.parametrize("answer", [status("500 Internal Server Error"), status("408 Request Timeout"), cuts])
async def test_what_may_have_happened_is_asked_about_and_not_repeated(
    calling: Platform, site: Site, answer: Any
) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.pages["/run"] = answer
    run = await called(calling, retry=RETRY)
    assert is_uncertain(run)
    assert len(site.asked) == 1


@pytest.mark.parametrize("words", ["429 Too Many Requests", "425 Too Early"])
async def test_what_was_not_taken_is_tried_again(calling: Platform, site: Site, words: str) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.pages["/run"] = in_turn(status(words), in_pieces(all_at_once(DONE), NDJSON))
    run = await called(calling, retry=RETRY)
    assert (run.status, len(site.asked)) == (RunStatus.COMPLETED, 2)


async def test_an_answer_that_is_cut_in_the_middle_is_no_result(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.pages["/run"] = in_pieces(all_at_once(DONE), NDJSON, ends=False)
    assert is_uncertain(await called(calling))


async def test_a_refusal_is_final_and_has_the_agents_words(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.says("/run", b'{"error": "give a\\u0007 week"}', status="422 Unprocessable")
    run = await ended(calling, await calling.submit(step(), max_retries=2))
    assert run.error is not None
    assert (run.status, run.error.code, len(site.asked)) == (RunStatus.FAILED, "deployment_refused", 1)
    assert run.error.message.endswith("answered 422: give a  week")


@pytest.mark.parametrize(
    ("body", "type", "code"),
    [
        (b"no json\n", NDJSON, "deployment_answer"),
        (b"\x89PNG", "image/png", "deployment_answer"),
        (b'"' + b"x" * 300_000 + b'"', "application/json", "deployment_answer"),
        (b'{"error": "no paper"}\n', NDJSON, "deployment_failed"),
    ],
)
async def test_a_wrong_answer_fails_and_says_why(
    calling: Platform, site: Site, body: bytes, type: str, code: str
) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.says("/run", body, f"Content-Type: {type}")
    run = await called(calling, retry=RETRY)
    assert run.error is not None
    assert (run.status, run.error.code, len(site.asked)) == (RunStatus.FAILED, code, 1)


async def test_a_redirect_is_not_followed(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    site.redirects("/run", site.url("/other"), "307 Temporary Redirect")
    run = await called(calling)
    assert run.error is not None
    assert (run.error.code, [asked.target for asked in site.asked]) == ("deployment_status", ["/run"])


async def test_one_that_is_slow_for_ever_is_left_when_its_time_is_over(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"log": "begun"}\n'
        await asyncio.Event().wait()

    site.pages["/run"] = in_pieces(pieces, NDJSON)
    run = await called(calling, arguments={"timeout_seconds": 1})
    assert is_uncertain(run)
    assert "within 1 s" in str(run.error)


async def test_the_agent_sees_that_its_run_was_cancelled(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, site.url(""))
    has_left = asyncio.Event()

    async def waits(writer: asyncio.StreamWriter) -> None:
        async def is_left() -> bool:
            try:
                writer.write(b"at work\n")
                await writer.drain()
            except ConnectionError:
                has_left.set()
            return has_left.is_set()

        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nbegun\n")
        await wait_until(is_left, 60)

    site.pages["/run"] = waits
    run_id = await calling.submit(step())

    async def is_begun() -> bool:
        return "begun" in await calling.lines(run_id)

    await wait_until(is_begun)
    await calling.submission.cancel(calling.user, run_id)
    await calling.until(run_id, RunStatus.CANCELLED)
    async with asyncio.timeout(30):
        await has_left.wait()


async def test_one_that_does_not_run_is_tried_again_until_it_does(calling: Platform, site: Site) -> None:
    store = calling.resources.store
    made = await deployed(store, calling.user)
    site.pages["/run"] = in_pieces(all_at_once(DONE), NDJSON)
    assert await store.deployments.write_rollout(made, Rollout(), DeploymentStatus.FAILED, "its image is not there")
    run = await called(calling)
    assert run.error is not None
    assert (run.status, run.error.code, run.error.retryable) == (RunStatus.FAILED, "deployment_not_running", True)
    assert "its image is not there" in run.error.message.lower()
    run_id = await calling.submit(step(retry={"max_attempts": 10, "backoff_seconds": 0.1}), max_retries=5)
    found = Rollout(revision=1, replicas=1, ready_replicas=1, is_complete=True, urls=(site.url(""),))
    assert await store.deployments.write_rollout(made, found, DeploymentStatus.RUNNING, "")
    await calling.completed(run_id)


async def test_where_one_replica_takes_no_connection_another_is_asked(calling: Platform, site: Site) -> None:
    await deployed(calling.resources.store, calling.user, "http://127.0.0.1:9", site.url(""))
    site.pages["/run"] = in_pieces(all_at_once(DONE), NDJSON)
    for _ in range(4):
        assert (await called(calling)).status is RunStatus.COMPLETED


async def test_the_deployment_of_another_user_is_none(calling: Platform, site: Site) -> None:
    store = calling.resources.store
    other, _ = await store.users.create_token("eve", Tier.ADMIN)
    made = await deployed(store, other.user, site.url(""))
    site.pages["/run"] = in_pieces(all_at_once(DONE), NDJSON)
    for name in ("writer", made.id):
        with pytest.raises(NotFound, match="no deployment"):
            await calling.submit(deployment=name)
        run = await called(calling, arguments={"deployment": name})
        assert run.error is not None
        assert (run.status, run.error.code) == (RunStatus.FAILED, "not_found")
    assert site.asked == []


async def test_of_two_namespaces_the_id_says_which(calling: Platform, site: Site) -> None:
    store = calling.resources.store
    first = await deployed(store, calling.user, site.url(""), namespace="one")
    second = await deployed(store, calling.user, site.url(""), namespace="two")
    site.pages["/run"] = in_pieces(all_at_once(DONE), NDJSON)
    with pytest.raises(Conflict, match=f"{first.id} in one, {second.id} in two"):
        await calling.submit(deployment="writer")
    await calling.completed(await calling.submit(deployment=second.id))
    await store.deployments.delete(second.id, calling.user, 1)
    with pytest.raises(Conflict, match="being deleted"):
        await calling.submit(deployment=second.id)
    await calling.completed(await calling.submit(deployment="writer"))


async def test_the_example_answers_and_writes_each_report_once(calling: Platform) -> None:
    agent = Path(__file__).parents[3] / "examples/deployed_agent/agent.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(agent)), stdout=asyncio.subprocess.PIPE, env={**os.environ, "PORT": "0"}
    )
    try:
        assert process.stdout is not None
        port = int((await process.stdout.readline()).split()[-1])
        await deployed(calling.resources.store, calling.user, f"http://127.0.0.1:{port}", **IDEMPOTENT)
        run_id = await calling.submit(deployment="writer", input={"text": "to be or not to be"})
        await calling.completed(run_id)
        assert await calling.lines(run_id) == ["reading 6 words", "writing the report"]
        result = (await record(calling, run_id, "agent")).result
        assert result is not None
        assert result["value"] == {"words": 6, "often": ["to", "be", "or"]}
        refused = await ended(calling, await calling.submit(deployment="writer", input=[]))
        assert refused.error is not None
        assert refused.error.code == "deployment_refused"
    finally:
        process.kill()
        await process.wait()
