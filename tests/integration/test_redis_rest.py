"""The client of Redis's REST API when something is wrong: what it says, what it sends again, and what nobody sees."""

import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from backplane.errors import InvalidInput, Unavailable
from backplane.logs.base import Batch
from backplane.queue.base import Queue
from backplane.redis import rest
from backplane.redis.client import Script, translated
from backplane.redis.rest import RestClients
from tests.event_logs import redis_event_log
from tests.queues import redis_queue
from tests.rest_front import TOKEN, Fault, RestFront, rest_front

HTML = b"<html>Service Unavailable</html>"
CUT = Fault(is_cut=True)
CUT_AFTER = Fault(is_cut=True, after=True)


@pytest.fixture
async def front(redis: str) -> AsyncIterator[RestFront]:
    async with rest_front(redis) as front:
        yield front


@pytest.fixture
async def clients(front: RestFront) -> AsyncIterator[RestClients]:
    clients = RestClients(front.url, TOKEN)
    yield clients
    await clients.close()


async def refusal(call: Any) -> str:
    with pytest.raises(Unavailable) as refused, translated():
        await call
    assert TOKEN not in "".join(traceback.format_exception(refused.value))
    return refused.value.message


# --- what it says ---


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(429, b'{"error":"slow down"}', ("Retry-After: 7",)), "answered 429"),
        (Fault(500, HTML), "answered 500"),
        (Fault(502, b""), "answered 502"),
        (Fault(503, HTML), "answered 503"),
        (Fault(404, b"{}"), "UPSTASH_REDIS_REST_URL"),
        (Fault(400, HTML), "answered 400"),
        (Fault(200, HTML), "no REST API of Redis"),
        (Fault(200, b'"text"'), "no REST API of Redis"),
        (Fault(200, b'{"error": "ERR max daily request limit exceeded. Limit: 10, Usage: 10."}'), "max daily request"),
        (Fault(400, b'{"error": "ERR DB capacity quota exceeded"}'), "capacity quota"),
        (Fault(400, b'{"error": "NOPERM this user has no permissions to run the \'get\' command"}'), "NOPERM"),
        (Fault(400, b'{"error": "READONLY You can\'t write against a read only replica."}'), "READONLY"),
        (Fault(400, b'{"error": "LOADING Redis is loading the dataset in memory"}'), "loading"),
    ],
)
async def test_whatever_a_gateway_answers_redis_is_unavailable_and_asked_once(
    front: RestFront, clients: RestClients, fault: Fault, reason: str
) -> None:
    front.fail_next(fault)
    assert reason in await refusal(clients.commands.get("a"))
    assert len(front.requests) == 1
    await clients.check_write()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_and_the_token_stays(
    front: RestFront, clients: RestClients, redis: str, status: int
) -> None:
    async with rest_front(redis) as elsewhere:
        front.fail_next(*[Fault(status, b"", (f"Location: {elsewhere.url}/",))] * 2)
        assert f"answered {status}" in await refusal(clients.commands.get("a"))
        log = redis_event_log(clients)
        async with log.subscription() as subscription:
            assert f"answered {status}" in await refusal(subscription.add("run"))
        assert elsewhere.requests == []


async def test_a_token_that_is_not_known_is_named_by_the_name_of_its_setting(front: RestFront) -> None:
    clients = RestClients(front.url, "another-token-of-nobody")
    message = await refusal(clients.commands.get("a"))
    assert "401" in message
    assert "UPSTASH_REDIS_REST_TOKEN" in message
    assert "another-token" not in message
    await clients.close()


async def test_a_host_that_is_away_is_unavailable_until_it_is_back(front: RestFront, clients: RestClients) -> None:
    await front.stop()
    assert "cannot be reached" in await refusal(clients.check_write())
    await front.start()
    await clients.check_write()


async def test_a_host_that_does_not_answer_is_given_up(
    front: RestFront, clients: RestClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "COMMAND_SECONDS", 0.2)
    front.fail_next(Fault(is_silent=True))
    assert "no answer" in await refusal(clients.commands.get("a"))
    assert len(front.requests) == 1


async def test_an_answer_too_few_is_no_answer(front: RestFront, clients: RestClients) -> None:
    front.fail_next(Fault(200, b'[{"result":"MQ=="}]'))
    async with clients.commands.pipeline(transaction=False) as pipeline:
        pipeline.get("a")
        pipeline.get("b")
        assert "1 answers to 2 commands" in await refusal(pipeline.execute())


async def test_a_transaction_that_is_refused_as_a_whole_says_why(front: RestFront, clients: RestClients) -> None:
    front.fail_next(Fault(400, b'{"error": "ERR max request size exceeded. Limit: 10 bytes"}'))
    async with clients.commands.pipeline(transaction=True) as pipeline:
        pipeline.set("a", "b")
        assert "max request size" in await refusal(pipeline.execute())


async def test_a_redis_that_does_not_say_what_it_drops_is_no_fault(front: RestFront, clients: RestClients) -> None:
    front.fail_next(Fault(400, b'{"error": "ERR Command is not available: \'INFO\'"}'))
    assert await clients.eviction_policy() is None
    assert await clients.eviction_policy() == "noeviction"


# --- what it sends again ---


async def test_a_command_that_may_be_repeated_is_sent_once_more_where_the_connection_broke(
    front: RestFront, clients: RestClients
) -> None:
    await clients.commands.set("a", "b")
    front.fail_next(CUT)
    assert await clients.commands.get("a") == "b"
    front.fail_next(CUT_AFTER, CUT)
    assert "broke off" in await refusal(clients.commands.get("a"))


@pytest.mark.parametrize("fault", [CUT, CUT_AFTER])
async def test_a_command_that_may_have_run_is_not_repeated(
    front: RestFront, clients: RestClients, fault: Fault
) -> None:
    front.fail_next(fault)
    assert "broke off" in await refusal(clients.commands.incrby("n", 1))
    assert await clients.commands.get("n") == ("1" if fault.after else None)
    front.fail_next(fault)
    assert "broke off" in await refusal(clients.commands.set("once", "a", nx=True))


async def test_a_pipeline_is_repeated_only_if_all_of_it_may_be(front: RestFront, clients: RestClients) -> None:
    async with clients.commands.pipeline(transaction=False) as pipeline:
        pipeline.publish("channel", "a")
        pipeline.time()
        front.fail_next(CUT_AFTER)
        assert len(await pipeline.execute()) == 2
        pipeline.publish("channel", "a")
        pipeline.lpush("l", "a")
        front.fail_next(CUT_AFTER)
        await refusal(pipeline.execute())
    assert await clients.commands.lrange("l", 0, -1) == ["a"]


async def test_a_script_is_sent_once_more_where_the_connection_broke(
    front: RestFront, clients: RestClients, tmp_path: Path
) -> None:
    (tmp_path / "script.lua").write_text("return redis.call('SET', KEYS[1], ARGV[1])")
    script = Script(clients, tmp_path / "script.lua")
    front.fail_next(CUT)
    assert await script(["a"], ["b"]) == "OK"
    front.fail_next(CUT_AFTER, CUT)
    await refusal(script(["a"], ["c"]))
    front.fail_next(Fault(503, HTML))
    before = len(front.requests)
    await refusal(script(["a"], ["d"]))
    assert len(front.requests) == before + 1


async def test_reads_see_earlier_writes_wherever_they_are_answered(front: RestFront, clients: RestClients) -> None:
    front.fail_next(Fault(200, b'{"result":"OK"}', ("Upstash-Sync-Token: wrote-1",)))
    await clients.commands.set("a", "b")
    await clients.commands.get("a")
    assert front.requests[-1].headers["upstash-sync-token"] == "wrote-1"


# --- what it cannot do ---


@pytest.fixture
def queue(clients: RestClients) -> Queue:
    return redis_queue(clients)


async def test_what_blocks_is_refused_with_the_setting_that_it_needs(clients: RestClients, queue: Queue) -> None:
    with pytest.raises(InvalidInput, match="REDIS_URL"):
        await queue.claim("worker", 1, 0.1)
    with pytest.raises(InvalidInput, match="REDIS_URL"):
        async with queue.cancels():
            pass


async def test_an_argument_that_is_no_text_is_refused_before_it_is_sent(front: RestFront, clients: RestClients) -> None:
    with pytest.raises(Exception, match="text alone"):
        await clients.commands.set("a", b"\xff")
    assert front.requests == []


# --- what nobody sees ---


async def test_the_token_goes_in_a_header_and_nowhere_else(front: RestFront, clients: RestClients) -> None:
    log = redis_event_log(clients)
    with structlog.testing.capture_logs() as lines:
        async with log.subscription() as subscription:
            await subscription.add("run")
            await log.append([Batch("run", 0, [])])
            await front.stop()
            await refusal(clients.commands.get("a"))
            await refusal(subscription.add("other"))
    assert {request.headers["authorization"] for request in front.requests} == {f"Bearer {TOKEN}"}
    for request in front.requests:
        others = [value for name, value in request.headers.items() if name != "authorization"]
        assert TOKEN not in f"{request.path} {others} {request.body!r}"
        assert not any(name.startswith("upstash-telemetry") for name in request.headers)
    assert TOKEN not in repr(lines)
    assert TOKEN not in repr(clients.__dict__)
