"""A worker is killed (SIGKILL) while a server outside has the call of a plug-in's tool, or of an MCP server's. What may
have happened is not done again by any layer, unless a person, the plan or the operator says that it may be."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import Run
from backplane.domain.steps import StepStatus
from tests.attack import mcp_site
from tests.attack.outside import RETRY, ended, hangs, is_uncertain, outside, posts, status
from tests.integration.agent.conftest import StartWithModels, asks_for, says
from tests.integration.tools.site import Site
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import ROOT, Platform, WorkerProcess
from tests.scripted_models import ScriptedModels
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PLUG_IN = """
import asyncio
from worker.tools.base import Risk, Tool, ToolArguments, ToolResult

class Nothing(ToolArguments):
    pass

class Pay(Tool):
    name = "pay"
    description = "Pays."
    arguments = Nothing
    risk = Risk.{risk}

    async def run(self, arguments, context):
        reader, writer = await asyncio.open_connection("127.0.0.1", {port})
        writer.write(b"POST /pay HTTP/1.1\\r\\nHost: bank\\r\\n\\r\\n")
        await writer.drain()
        await reader.read()
        return ToolResult()
"""

StartWorker = Callable[..., Awaitable[WorkerProcess]]


def install(folder: Path, site: Site, risk: str) -> Path:
    """A package with a plug-in, as a package manager leaves it."""
    information = folder / "bank_tools-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: bank-tools\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text("[agent_platform.tools]\npay = bank_tools:Pay\n")
    (folder / "bank_tools.py").write_text(PLUG_IN.format(risk=risk, port=site.port))
    return folder


@pytest.fixture
async def start_worker(tmp_path: Path) -> AsyncIterator[StartWorker]:
    """`await start_worker(platform, packages)`: a worker process that finds these packages."""
    async with AsyncExitStack() as stack:

        async def start(platform: Platform, packages: Path | None = None) -> WorkerProcess:
            path = f"{ROOT}:{packages}" if packages else str(ROOT)
            process = WorkerProcess(platform.settings, platform.scratch, environment={"PYTHONPATH": path})
            stack.push_async_callback(process.kill)
            await process.start()
            return process

        yield start


@pytest.mark.parametrize(
    ("risk", "step", "calls", "end"),
    [
        ("HIGH", {"retry": RETRY}, 1, StepStatus.UNCERTAIN),
        ("HIGH", {"repeatable": True}, 2, StepStatus.COMPLETED),
        ("LOW", {}, 2, StepStatus.COMPLETED),
    ],
    ids=["reaches outside", "the plan says that it may be repeated", "says that it stays inside"],
)
async def test_the_call_of_a_plug_in_is_made_again_only_where_somebody_says_that_it_may_be(
    start_platform: StartPlatform,
    start_worker: StartWorker,
    site: Site,
    tmp_path: Path,
    risk: str,
    step: dict[str, Any],
    calls: int,
    end: StepStatus,
) -> None:
    packages = install(tmp_path / "packages", site, risk)
    platform = await start_platform(**outside(site))
    run_id = await platform.submit({"id": "pay", "tool": "pay", **step}, max_retries=3)
    run = await _killed(platform, site, run_id, lambda: start_worker(platform, packages), lambda: posts(site))
    assert (posts(site), is_uncertain(run)) == (calls, end is StepStatus.UNCERTAIN)
    assert [record.status for record in await platform.journal(run_id)] == [end]


@pytest.mark.parametrize(
    ("entry", "calls", "uncertain"),
    [({}, 1, True), ({"repeatable": ["pay"]}, 2, False)],
    ids=["as it is", "the operator says that it may be repeated"],
)
async def test_the_call_of_an_mcp_server_is_made_again_only_where_the_operator_says_that_it_may_be(
    start_platform: StartPlatform,
    start_worker: StartWorker,
    site: Site,
    entry: dict[str, Any],
    calls: int,
    uncertain: bool,
) -> None:
    mcp_site.serve(site, "/bank", mcp_site.whatever(hangs))
    servers = {"bank": {"url": site.url("/bank"), **entry}}
    platform = await start_platform(**outside(site, mcp_servers=servers))
    step = {"id": "pay", "tool": "bank__pay", "retry": RETRY}
    run_id = await platform.submit(step, mcp_servers=["bank"], max_retries=3)
    run = await _killed(
        platform,
        site,
        run_id,
        lambda: start_worker(platform),
        lambda: mcp_site.calls(site, "/bank"),
        after=_mcp_answers,
    )
    assert (mcp_site.calls(site, "/bank"), is_uncertain(run)) == (calls, uncertain)


@pytest.mark.parametrize("kind", ["plug-in", "mcp"])
async def test_an_agent_does_not_call_again_what_may_have_happened_below_it(
    start_with_models: StartWithModels,
    start_worker: StartWorker,
    models: ScriptedModels,
    site: Site,
    tmp_path: Path,
    kind: str,
) -> None:
    """Its model does not see it either before a person has looked."""
    tool = "pay" if kind == "plug-in" else "bank__pay"
    models.script(asks_for((tool, {})), asks_for((tool, {})), says("Paid."))
    mcp_site.serve(site, "/bank", mcp_site.whatever(hangs))
    servers = {"mcp_servers": {"bank": {"url": site.url("/bank")}}} if kind == "mcp" else {}
    packages = install(tmp_path / "packages", site, "HIGH") if kind == "plug-in" else None
    platform: Platform = await start_with_models(working=False, **outside(site, **servers))
    agent = {"id": "agent", "tool": "agent", "arguments": {"goal": "Pay 10.", "tools": [tool]}, "retry": RETRY}
    run_id = await platform.submit(agent, max_retries=3, mcp_servers=["bank"] if servers else [])

    def calls() -> int:
        return posts(site) if kind == "plug-in" else mcp_site.calls(site, "/bank")

    run = await _killed(platform, site, run_id, lambda: start_worker(platform, packages), calls, after=_mcp_answers)
    assert (calls(), is_uncertain(run), len(models.asked)) == (1, True, 1)


async def _killed(
    platform: Platform,
    site: Site,
    run_id: str,
    start: Callable[[], Awaitable[WorkerProcess]],
    calls: Callable[[], int],
    after: Callable[[Site], None] = lambda site: None,
) -> Run:
    """The run, once it has ended or waits: its first worker was killed when the server had the call, and another took
    it over. `after`: what becomes of the server then."""
    site.pages["/pay"] = hangs
    first = await start()
    await wait_until(lambda: calls() == 1, 30.0, "the server has the call")
    await first.kill()
    site.pages["/pay"] = status("200 OK")
    after(site)
    await start()
    return await ended(platform, run_id)


def _mcp_answers(site: Site) -> None:
    def paid(id: Any) -> Any:
        return mcp_site.result(id, {"content": [{"type": "text", "text": "paid"}]})

    mcp_site.serve(site, "/bank", paid)
