"""The console in a real Chromium, before the real API and a worker."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browsing import CHROMIUM
from tests.integration.api.running import Api, Person, StartWorker
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]

AXE = Path(__file__).parents[2] / "console" / "node_modules" / "axe-core" / "axe.min.js"
# Chromium as root, which speaks to nobody by itself.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FIRST_PAGE_BYTES = 250 * 1024
LINES = 300
WRITES = {"id": "write", "tool": "shell", "arguments": {"script": f"seq -f 'line %g' 1 {LINES}"}}
ASKS = {"id": "ask", "tool": "shell", "approval": True, "arguments": {"script": "echo before"}}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=OPTIONS)
        yield browser
        await browser.close()


async def sign_in(page: Page, api: Api, token: str) -> None:
    await page.goto(f"{api.url}/console/")
    await page.get_by_role("textbox", name="Token").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()


@pytest.fixture
async def page(browser: Browser, api: Api, person: Person) -> Page:
    page = await (await browser.new_context()).new_page()
    await sign_in(page, api, person.token)
    return page


async def test_a_token_that_is_unknown_is_refused_with_a_reason(browser: Browser, api: Api) -> None:
    page = await browser.new_page()
    await page.goto(f"{api.url}/console/runs")
    await page.get_by_role("textbox", name="Token").fill("agt_nobody")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")


async def test_a_token_is_kept_nowhere_in_the_browser(page: Page, person: Person) -> None:
    kept = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert person.token not in kept
    assert "agent_session" not in kept


async def test_a_run_is_in_the_list_the_moment_it_is_queued(
    page: Page, api: Api, person: Person, start_worker: StartWorker
) -> None:
    await page.get_by_role("link", name="Runs", exact=True).click()
    await expect(page.get_by_text("No runs yet")).to_be_visible()
    await person.make(prompt="# Say hello\n")
    row = page.get_by_role("row").filter(has_text="Say hello")
    await expect(row).to_contain_text("queued")
    start_worker(api.settings)
    await expect(row).to_contain_text("completed", timeout=30_000)


async def test_a_log_has_every_line_once_though_the_connection_is_cut(
    page: Page, api: Api, person: Person, start_worker: StartWorker
) -> None:
    run = await person.make(plan={"steps": [WRITES]})
    await page.goto(f"{api.url}/console/runs/{run}/log")
    await page.context.set_offline(True)
    start_worker(api.settings)

    async def is_over() -> bool:
        return bool((await person.show(run))["status"] == "completed")

    await wait_until(is_over)
    await page.context.set_offline(False)
    await expect(page.get_by_text("run completed")).to_be_visible(timeout=30_000)
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download the log").click()
    text = Path(await (await download.value).path()).read_text()
    lines = [line for line in text.splitlines() if "] line " in line]
    assert [line.rpartition("] ")[2] for line in lines] == [f"line {number}" for number in range(1, LINES + 1)]


async def test_a_decision_is_made_by_keys_alone_with_edited_arguments(
    page: Page, api: Api, person: Person, start_worker: StartWorker
) -> None:
    start_worker(api.settings)
    run = await person.make(plan={"steps": [ASKS]})
    count = page.get_by_role("link", name="Needs you").get_by_text("1", exact=True)
    await expect(count).to_be_visible(timeout=30_000)
    await page.keyboard.press("g")
    await page.keyboard.press("n")
    await expect(page.get_by_text("echo before")).to_be_visible()
    await page.keyboard.press("e")
    await page.get_by_label("Arguments, as JSON").fill(json.dumps({"script": "echo after"}))
    await page.get_by_role("button", name="Approve as edited").press("Enter")
    await expect(count).to_have_count(0, timeout=30_000)

    async def is_over() -> bool:
        return bool((await person.show(run))["status"] == "completed")

    await wait_until(is_over)
    assert "after" in json.dumps((await person.show(run))["steps"])


async def test_a_tab_that_is_opened_beside_another_opens_no_second_stream(page: Page, api: Api, person: Person) -> None:
    streams: list[str] = []
    other = await page.context.new_page()
    other.on("request", lambda request: streams.append(request.url) if "/agent/events" in request.url else None)
    await other.goto(f"{api.url}/console/runs")
    await expect(other.get_by_text("No runs yet")).to_be_visible()
    await person.make(prompt="# From elsewhere")
    await expect(other.get_by_text("From elsewhere")).to_be_visible()
    assert streams == []


async def test_the_scripts_of_the_first_page_are_within_their_budget(page: Page, api: Api) -> None:
    urls: list[str] = await page.evaluate(
        "performance.getEntriesByType('resource').map(one => one.name).filter(one => one.endsWith('.js'))"
    )
    assert urls
    async with httpx.AsyncClient(headers={"Accept-Encoding": "gzip"}) as http:
        sizes = [int((await http.get(url)).headers["content-length"]) for url in urls]
    assert sum(sizes) <= FIRST_PAGE_BYTES


@pytest.mark.skipif(not AXE.exists(), reason="needs console/node_modules (make console)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_has_a_barrier(
    browser: Browser, api: Api, person: Person, start_worker: StartWorker, scheme: Any
) -> None:
    start_worker(api.settings)
    run = await person.make(plan={"steps": [WRITES, ASKS]})

    async def is_waiting() -> bool:
        return bool((await person.show(run))["status"] == "waiting")

    await wait_until(is_waiting)
    # The checker is a script of nobody's page, so the page's policy must let it in.
    context = await browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = await context.new_page()
    await sign_in(page, api, person.token)
    tabs = ["timeline", "plan", "log", "files", "model-calls", "decisions", "events", "explain"]
    for path in ["", "runs", "needs-you", "spend", *(f"runs/{run}/{tab}" for tab in tabs)]:
        await page.goto(f"{api.url}/console/{path}")
        await expect(page.locator("main :is(h1, h2, table, [role=log])").first).to_be_visible()
        await page.wait_for_load_state("load")
        await page.add_script_tag(path=AXE)
        found = await page.evaluate("axe.run().then(all => all.violations.map(one => [one.id, one.nodes[0].html]))")
        assert found == [], path


async def test_spend_without_a_model_call_says_what_to_do_and_keeps_its_question_in_the_address(
    page: Page, api: Api
) -> None:
    await page.goto(f"{api.url}/console/spend?by=model")
    await expect(page.get_by_text("No model was called in this time")).to_be_visible()
    await page.get_by_label("day", exact=True).check()
    await expect(page).to_have_url(f"{api.url}/console/spend?by=model%2Cday")
    await page.set_viewport_size({"width": 360, "height": 700})
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
