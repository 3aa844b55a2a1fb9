"""What a worker counts, seen by scraping it while it carries out real runs."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agentctl.local.embedded import free_port
from backplane.domain.runs import RunStatus
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import BlockingTool, Scripted, equip
from tests.metrics import Scraped, broken_conventions, parsed, scrape
from tests.platform.workers import Platform, WorkerProcess, worker
from tests.submitted import shell, write
from tests.waiting import wait_until
from worker.metrics import WorkerMetrics
from worker.tools.base import ToolContext, ToolResult

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-")

StartProcess = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    return await start_platform(metrics_port=free_port())


async def scraped(platform: Platform) -> Scraped:
    return await scrape(f"http://127.0.0.1:{platform.settings.metrics_port}")


async def until_counted(platform: Platform, name: str, **labels: str) -> Scraped:
    """The metrics, once this one is not 0."""

    async def look() -> Scraped | None:
        found = await scraped(platform)
        return found if found.value(name, **labels) else None

    found = await wait_until(look, what=f"{name} {labels} is counted")
    assert found
    return found


async def test_a_run_and_its_steps_are_counted_with_what_they_took_and_moved(platform: Platform) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(write("put", "a.txt", "x" * 1000), shell("copy", "cat a.txt a.txt > b.txt"))
        await platform.completed(run_id)
        found = await until_counted(platform, "agent_runs_finished_total", status="completed")
    assert found.value("agent_run_seconds_count", status="completed") == 1
    assert found.value("agent_run_wait_seconds_count", priority="normal") == 1
    assert 0 < found.value("agent_run_wait_seconds_sum", priority="normal") < 30
    assert found.value("agent_steps_total", tool="file_write", status="completed") == 1
    assert found.value("agent_steps_total", tool="shell", status="completed") == 1
    assert found.value("agent_step_seconds_count", tool="shell") == 1
    assert found.value("agent_workspace_transferred_bytes_total", direction="down") == 1000
    assert found.value("agent_workspace_transferred_bytes_total", direction="up") == 3000


async def test_a_step_that_failed_and_its_run_are_counted(platform: Platform) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(shell("no", "exit 3", retry={"max_attempts": 2, "backoff_seconds": 0.01}))
        await platform.until(run_id, RunStatus.FAILED)
        found = await until_counted(platform, "agent_runs_finished_total", status="failed")
    assert found.value("agent_steps_total", tool="shell", status="failed") == 2
    assert found.value("agent_runs_finished_total", status="completed") == 0


async def test_a_retry_is_counted_by_its_reason_and_its_pause_is_no_waiting(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_once(call: int, context: ToolContext) -> ToolResult:
        if call == 1:
            raise RuntimeError("nobody has thought of this")
        return ToolResult()

    equip(monkeypatch, Scripted(break_once))
    async with worker(platform.settings):
        step = {"id": "a", "tool": "scripted", "arguments": {}, "repeatable": True}
        await platform.completed(await platform.submit(step, max_retries=1))
        found = await scraped(platform)
    assert found.value("agent_run_retries_total", reason="internal_error") == 1
    assert found.value("agent_steps_total", tool="scripted", status="failed") == 1
    assert found.value("agent_steps_total", tool="scripted", status="completed") == 1
    assert found.value("agent_run_wait_seconds_count", priority="normal") == 1


async def test_running_runs_are_shown_beside_the_slots_and_an_interrupted_step_is_counted(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    async with worker(platform.settings.model_copy(update={"worker_concurrency": 3})):
        run_id = await platform.submit({"id": "hold", "tool": "hold", "arguments": {}})
        await wait_until(lambda: tool.blocked)
        found = await scraped(platform)
        assert (found.value("agent_worker_slots"), found.value("agent_worker_runs")) == (3, 1)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
        found = await until_counted(platform, "agent_runs_finished_total", status="cancelled")
    assert found.value("agent_steps_total", tool="hold", status="interrupted") == 1


async def test_a_lease_that_ended_is_counted_by_who_finds_it(platform: Platform) -> None:
    run_id = await platform.submit(shell("a", "true"))
    await platform.claimed()
    async with worker(platform.settings):
        await platform.completed(run_id)
        found = await scraped(platform)
    assert found.value("agent_leases_lost_total") == 1


async def test_a_run_that_another_worker_took_is_counted_by_the_worker_that_had_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    async with worker(platform.settings):
        run_id = await platform.submit({"id": "hold", "tool": "hold", "arguments": {}})
        await wait_until(lambda: tool.blocked)
        await platform.resources.store.running_runs.take(run_id, 2)
        found = await until_counted(platform, "agent_runs_superseded_total")
    assert found.value("agent_runs_finished_total", status="completed") == 0


@pytest.mark.slow
async def test_the_names_follow_the_conventions_and_no_label_is_a_run_or_a_user(
    start_process: StartProcess, platform: Platform
) -> None:
    await start_process(platform)
    run_ids = [await platform.submit(shell(f"step-{number}", f"exit {number}")) for number in range(3)]
    for run_id in run_ids:
        await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
    found = await scraped(platform)
    assert broken_conventions(found.families) == []
    assert {"process_resident_memory_bytes", "python_info", "agent_steps_total"} <= found.names
    seen = {value for name in found.names for labels in found.labels(name) for value in labels.values()}
    assert not {value for value in seen if UUID.search(value) or "step-" in value or platform.user.name in value}


def test_codes_that_nobody_knows_share_a_label() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    for reason in ("sandbox_evicted", "part_unavailable", "made up", "made up too"):
        metrics.sandbox_failed("kubernetes", reason)
    found = parsed(generate_latest(registry).decode())
    assert found.value("agent_sandbox_failures_total", kind="kubernetes", reason="other") == 2
    assert {labels["reason"] for labels in found.labels("agent_sandbox_failures_total")} == {
        "sandbox_evicted",
        "part_unavailable",
        "other",
    }


async def test_a_worker_that_waits_for_a_part_is_alive(start_platform: StartPlatform) -> None:
    platform = await start_platform(metrics_port=free_port(), redis_url="redis://127.0.0.1:1")
    async with worker(platform.settings), httpx.AsyncClient() as http:

        async def alive() -> bool:
            with suppress(httpx.TransportError):
                answer = await http.get(f"http://127.0.0.1:{platform.settings.metrics_port}/health/live")
                return answer.status_code == 200
            return False

        await wait_until(alive)


@pytest.mark.slow
async def test_a_worker_whose_metrics_port_is_taken_works_on_and_says_so(
    start_process: StartProcess, platform: Platform
) -> None:
    await start_process(platform)
    second = await start_process(platform)
    await second.until_logged(
        "metrics are not served: the address cannot be used; set another METRICS_PORT or METRICS_HOST"
    )
    assert second.is_running
