"""What replicas printed: numbered, the newest kept."""

from datetime import UTC, datetime, timedelta

import pytest

from backplane.domain.deployments import (
    LOG_BATCH_LINES,
    LOG_LINE_CHARS,
    LOG_LINES_KEPT,
    Deployment,
    PrintedLine,
)
from backplane.domain.users import User
from backplane.errors import NotFound
from backplane.store import Store
from backplane.store.deployments import logs
from tests.deployments import new_deployment

AT = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture
async def deployment(store: Store, user: User) -> Deployment:
    made, _ = await store.deployments.create(user, new_deployment(), most=5)
    return made


def lines(count: int, text: str = "line") -> list[PrintedLine]:
    return [PrintedLine("replica-1", f"{text} {number}", AT + timedelta(seconds=number)) for number in range(count)]


async def test_lines_are_numbered_in_their_order_and_read_behind_a_cursor(store: Store, deployment: Deployment) -> None:
    await store.deployments.add_log_lines(deployment.id, lines(2, "first"))
    await store.deployments.add_log_lines(deployment.id, lines(2, "second"))
    page = await store.deployments.logs_after(deployment.id, 1, 2)
    assert [(line.number, line.text) for line in page.lines] == [(2, "first 1"), (3, "second 0")]
    assert (page.oldest, page.last) == (1, 4)
    assert (page.lines[0].replica, page.lines[0].at) == ("replica-1", AT + timedelta(seconds=1))
    assert (await store.deployments.logs_after(deployment.id, 4, 2)).lines == []
    assert await store.deployments.last_lines([deployment.id, "another"]) == {deployment.id: 4}


async def test_a_deployment_that_printed_nothing_has_no_lines(store: Store, deployment: Deployment) -> None:
    await store.deployments.add_log_lines(deployment.id, [])
    page = await store.deployments.logs_after(deployment.id, 0, 10)
    assert (page.lines, page.oldest, page.last) == ([], 0, 0)
    assert await store.deployments.last_log_times(deployment.id) == {}


async def test_lines_of_a_deployment_that_is_gone_are_dropped(store: Store, deployment: Deployment) -> None:
    await store.deployments.forget(deployment.id)
    await store.deployments.add_log_lines(deployment.id, lines(1))
    with pytest.raises(NotFound):
        await store.deployments.logs_after(deployment.id, 0, 10)


async def test_lines_that_come_too_fast_are_counted(store: Store, deployment: Deployment) -> None:
    too_many = [PrintedLine("replica-1", "before", AT, left_out=2), *lines(LOG_BATCH_LINES)]
    await store.deployments.add_log_lines(deployment.id, too_many)
    page = await store.deployments.logs_after(deployment.id, 0, LOG_BATCH_LINES + 1)
    assert [line.left_out for line in page.lines[:2]] == [3, 0]
    assert (len(page.lines), page.last) == (LOG_BATCH_LINES, LOG_BATCH_LINES)


async def test_a_long_line_is_cut_and_what_no_database_takes_is_replaced(store: Store, deployment: Deployment) -> None:
    for text in ("x" * (LOG_LINE_CHARS + 1), "a\0b\ud800"):
        await store.deployments.add_log_lines(deployment.id, [PrintedLine("replica-1", text, AT)])
    cut, replaced = (await store.deployments.logs_after(deployment.id, 0, 2)).lines
    assert cut.text == "x" * LOG_LINE_CHARS + "…"
    assert "\0" not in replaced.text


async def test_the_oldest_lines_go(store: Store, deployment: Deployment) -> None:
    for _ in range(LOG_LINES_KEPT // LOG_BATCH_LINES):
        await store.deployments.add_log_lines(deployment.id, lines(LOG_BATCH_LINES))
    assert (await store.deployments.logs_after(deployment.id, 0, 1)).oldest == 1
    await store.deployments.add_log_lines(deployment.id, lines(3))
    page = await store.deployments.logs_after(deployment.id, 0, 1)
    assert (page.lines[0].number, page.oldest, page.last) == (4, 4, LOG_LINES_KEPT + 3)


async def test_so_many_characters_are_kept(
    store: Store, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOG_CHARS_KEPT", 1000)
    monkeypatch.setattr(logs, "SLACK_CHARS", 100)
    for _ in range(30):
        await store.deployments.add_log_lines(deployment.id, [PrintedLine("replica-1", "x" * 100, AT)])
        kept = (await store.deployments.logs_after(deployment.id, 0, 100)).lines
        assert len(kept) <= 12
    assert len(kept) >= 10


async def test_a_reader_of_the_targets_logs_finds_where_each_replica_stopped(
    store: Store, deployment: Deployment
) -> None:
    twice = [PrintedLine("replica-2", text, AT) for text in "xy"]
    await store.deployments.add_log_lines(deployment.id, [*lines(3), *twice])
    assert await store.deployments.last_log_times(deployment.id) == {
        "replica-1": (AT + timedelta(seconds=2), 1),
        "replica-2": (AT, 2),
    }
