"""Webhooks as their receivers see them: signed, once, again when it failed, and not after the end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from backplane.domain.runs import Run, RunStatus
from backplane.domain.webhooks import DeliveryStatus
from backplane.settings import Settings
from backplane.store.tables import webhook_deliveries
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.integration.controller.receiving import Receiver, answer
from tests.servers import PostgresServer
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
START_SECONDS = 60.0
"""For a process on a machine that does much else."""


async def settled(platform: Platform, run: Run) -> DeliveryStatus:
    """What became of the run's newest delivery, once it is no longer pending."""

    async def look() -> DeliveryStatus | None:
        state = await platform.store.webhooks.last_of(run.id)
        return state.status if state and state.status is not DeliveryStatus.PENDING else None

    found = await wait_until(look)
    assert found
    return found


async def test_the_end_of_a_run_is_posted_with_a_signature(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    run = await platform.ended_run(receiver.url("/hook?team=1"))
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.DELIVERED
    [received] = receiver.received
    secret = await platform.store.webhooks.secret(platform.user.id)
    assert received.is_signed_with(secret.secret)
    assert received.path == "/hook?team=1"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == received.json["delivery_id"]
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    assert (received.json["event"], received.json["run_id"]) == ("run.completed", run.id)


async def test_after_a_rotation_both_secrets_have_signed(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    old = await platform.store.webhooks.secret(platform.user.id)
    new = await platform.store.webhooks.rotate_secret(platform.user.id, overlap_seconds=3600.0)
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    await settled(platform, run)
    [received] = receiver.received
    assert received.is_signed_with(old.secret)
    assert received.is_signed_with(new.secret)


async def test_what_failed_is_sent_again_under_the_same_id_until_it_arrives(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers += [answer(500), answer(404), b"not HTTP at all\r\n\r\n", b""]
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.DELIVERED
    assert await platform.state(run) == ("delivered", 5)
    assert len({(received.headers["webhook-id"], received.body) for received in receiver.received}) == 1
    secret = await platform.store.webhooks.secret(platform.user.id)
    assert all(received.is_signed_with(secret.secret) for received in receiver.received)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_after_the_last_attempt_it_is_given_up(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers, attempts: int
) -> None:
    platform = await start_platform(webhook_max_attempts=attempts)
    receiver.answers += [answer(500)] * 5
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.GIVEN_UP
    assert len(receiver.received) == attempts
    state = await platform.store.webhooks.last_of(run.id)
    assert state
    assert (state.attempts, state.response_code, state.last_error) == (attempts, 500, "it answered 500")


async def test_a_receiver_that_is_gone_is_not_asked_again(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers.append(answer(410))
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.GIVEN_UP
    assert await platform.state(run) == ("given_up", 1)


async def test_a_receiver_may_ask_for_more_time(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers.append(answer(503, "Retry-After: 3600"))
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)

    async def failed_once() -> datetime | None:
        state = await platform.store.webhooks.last_of(run.id)
        return state.next_at if state and state.response_code == 503 else None

    next_at = await wait_until(failed_once)
    assert next_at
    assert timedelta(minutes=59) < next_at - datetime.now(UTC) < timedelta(minutes=61)


async def test_redirects_are_not_followed(platform: Platform, receiver: Receiver, controllers: Controllers) -> None:
    receiver.answers.append(answer(307, f"Location: {receiver.url('/elsewhere')}"))
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.DELIVERED
    assert [received.path for received in receiver.received] == ["/hook", "/hook"]


async def test_cookies_of_a_receiver_are_not_kept(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers.append(answer(500, "Set-Cookie: user=1; Path=/"))
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    await settled(platform, run)
    assert [received.headers.get("cookie") for received in receiver.received] == [None, None]


async def test_proxies_of_the_environment_are_not_used(
    platform: Platform, receiver: Receiver, controllers: Controllers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.DELIVERED


async def test_an_answer_that_never_ends_is_not_read_to_its_end(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers.append(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + 64 * (b"1000\r\n" + 4096 * b"x" + b"\r\n")
    )
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.DELIVERED
    assert await platform.state(run) == ("delivered", 1)


async def test_a_receiver_that_does_not_answer_costs_an_attempt_and_no_more(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers
) -> None:
    platform = await start_platform(webhook_timeout_seconds=0.1, webhook_max_attempts=1)
    receiver.answers.append(None)
    run = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.GIVEN_UP
    state = await platform.store.webhooks.last_of(run.id)
    assert state
    assert (state.response_code, state.last_error) == (None, "no answer within 0.1 s")


async def test_where_nobody_listens_it_is_tried_again(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers
) -> None:
    platform = await start_platform(webhook_max_attempts=2)
    run = await platform.ended_run("http://127.0.0.1:9/hook")
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.GIVEN_UP
    assert await platform.state(run) == ("given_up", 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_never_reached_unless_that_is_allowed(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers, host: str
) -> None:
    platform = await start_platform(webhook_allow_private=False)
    run = await platform.ended_run(receiver.url(host=host))
    controllers.start(platform.settings)
    assert await settled(platform, run) is DeliveryStatus.GIVEN_UP
    assert receiver.received == []
    state = await platform.store.webhooks.last_of(run.id)
    assert state
    assert state.last_error
    assert "WEBHOOK_ALLOW_PRIVATE" in state.last_error
    assert "127" not in state.last_error


async def test_one_users_slow_receiver_does_not_hold_up_anothers(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers
) -> None:
    platform = await start_platform(webhook_concurrency=8)
    receiver.answers += [None] * 2
    slow = [await platform.ended_run(receiver.url("/slow")) for _ in range(8)]
    controllers.start(platform.settings)
    await wait_until(lambda: len(receiver.received) == 2)
    token, _ = await platform.store.users.create_token("eve", platform.user.tier)
    other = Platform(platform.settings, platform.store, platform.workspaces, token.user)
    assert await settled(other, await other.ended_run(receiver.url("/quick"))) is DeliveryStatus.DELIVERED
    assert [received.path for received in receiver.received] == ["/slow", "/slow", "/quick"]
    receiver.release.set()
    for run in slow:
        assert await settled(platform, run) is DeliveryStatus.DELIVERED


async def test_three_controllers_deliver_each_message_once(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    for _ in range(3):
        controllers.start(platform.settings)
    made = [await platform.ended_run(receiver.url()) for _ in range(15)]
    for run in made:
        assert await settled(platform, run) is DeliveryStatus.DELIVERED
    assert sorted(received.json["run_id"] for received in receiver.received) == sorted(run.id for run in made)


@pytest.mark.slow
async def test_what_a_killed_controller_was_sending_is_sent_by_another(
    platform: Platform, receiver: Receiver, controllers: Controllers
) -> None:
    receiver.answers.append(None)
    run = await platform.ended_run(receiver.url())
    process = await start_process(platform.settings)
    await wait_until(lambda: receiver.received, START_SECONDS)
    process.kill()
    await process.wait()
    controllers.start(platform.settings)
    # The lease ends; without waiting for it.
    past = update(webhook_deliveries).values(next_at=datetime.now(UTC) - timedelta(seconds=1))
    await platform.store.database.write(lambda connection: connection.execute(past))
    assert await settled(platform, run) is DeliveryStatus.DELIVERED
    assert await platform.state(run) == ("delivered", 2)
    assert receiver.received[0].body == receiver.received[1].body


@pytest.mark.slow
async def test_a_controller_that_is_asked_to_end_waits_for_the_answers_to_what_it_has_sent(
    platform: Platform, receiver: Receiver
) -> None:
    receiver.answers.append(None)
    run = await platform.ended_run(receiver.url())
    process = await start_process(platform.settings)
    try:
        await wait_until(lambda: receiver.received, START_SECONDS)
        process.send_signal(signal.SIGTERM)
        receiver.release.set()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await platform.state(run) == ("delivered", 1)


async def test_webhooks_go_on_after_the_database_was_away(
    start_platform: StartPlatform,
    receiver: Receiver,
    controllers: Controllers,
    own_postgres: Callable[[], PostgresServer],
) -> None:
    server = own_postgres()
    platform = await start_platform(database_url=server.url())
    receiver.answers.append(None)
    first = await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    await wait_until(lambda: receiver.received)
    server.stop()
    # It arrives while nobody can write that down.
    receiver.release.set()
    server.start()
    assert await settled(platform, first) is DeliveryStatus.DELIVERED
    second = await platform.ended_run(receiver.url(), RunStatus.FAILED)
    assert await settled(platform, second) is DeliveryStatus.DELIVERED
    assert [received.json["event"] for received in receiver.received] == ["run.completed", "run.failed"]


async def test_neither_secrets_nor_urls_are_logged(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = await start_platform(webhook_max_attempts=2)
    receiver.answers += [answer(500), answer(500)]
    failed = await platform.ended_run(receiver.url("/as-good-as-a-password"))
    arrived = None
    controllers.start(platform.settings)
    await settled(platform, failed)
    arrived = await platform.ended_run(receiver.url("/as-good-as-a-password"))
    await settled(platform, arrived)
    said = "".join(capsys.readouterr())
    assert "webhook given up" in said
    assert "webhook delivered" in said
    assert "password" not in said
    assert "whsec_" not in said


async def start_process(settings: Settings) -> asyncio.subprocess.Process:
    """A controller process on the same settings; what it says goes where the test's own output goes."""
    named = {name: getattr(settings, name) for name in settings.model_fields_set}
    variables = {name.upper(): _plain(value) for name, value in named.items()}
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "controller", env=environment)


def _plain(value: object) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
