"""The browser tool with a real Chromium in the real sandbox of this machine."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backplane.errors import InvalidInput, Unavailable
from backplane.net.egress import OutsideRefused
from tests.browsing import CHROMIUM, Visitor, served_pages, visiting
from worker.sandbox.local.sandbox import open_local_sandbox


@pytest.fixture
def site() -> Iterator[str]:
    with served_pages() as site:
        yield site


@pytest.fixture
async def visitor(tmp_path: Path) -> AsyncIterator[Visitor]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"there is no {CHROMIUM}: install chromium", pytrace=False)
        pytest.skip(f"there is no {CHROMIUM}")
    try:
        sandbox = await open_local_sandbox(require_isolation=True, folders=[Path(sys.prefix)])
    except Unavailable as error:
        pytest.skip(error.message)
    async with visiting(sandbox, tmp_path, f"{sys.prefix}/bin/python") as visitor:
        yield visitor
    await sandbox.close()


async def test_a_form_is_filled_in_and_what_it_gives_is_read_and_kept(visitor: Visitor, site: str) -> None:
    result, said = await visitor.browse(
        site,
        {"do": "open", "url": f"http://{site}/"},
        {"do": "fill", "selector": "[name=who]", "value": "${secrets.NAME}"},
        {"do": "select", "selector": "select", "value": "quiet"},
        {"do": "screenshot", "path": "shots/form.png"},
        {"do": "click", "selector": "text=Go"},
        {"do": "text"},
    )
    assert (result.exit_code, result.files_changed) == (0, ("shots/form.png",)), said
    assert "who=opened&how=quiet" in said
    assert visitor.secrets.hosts == [site]
    assert (await visitor.bench.context.workspace.get("shots/form.png"))[1].startswith(b"\x89PNG")


@pytest.mark.slow
async def test_a_download_becomes_a_file_and_links_are_listed(visitor: Visitor, site: str) -> None:
    result, said = await visitor.browse(
        site,
        {"do": "open", "url": f"http://{site}/"},
        {"do": "links"},
        {"do": "download", "selector": "text=the report", "path": "report.csv"},
    )
    assert (result.exit_code, result.files_changed) == (0, ("report.csv",)), said
    assert "elsewhere  http://evil.test/" in said
    assert (await visitor.bench.context.workspace.get("report.csv"))[1] == b"a,b\n1,2\n"


@pytest.mark.slow
async def test_what_the_operator_did_not_name_cannot_be_reached_by_a_click(visitor: Visitor, site: str) -> None:
    result, said = await visitor.browse(
        site, {"do": "open", "url": f"http://{site}/"}, {"do": "click", "selector": "text=elsewhere"}, {"do": "text"}
    )
    assert "tools may not reach evil.test" in said
    assert any("evil.test" in notice for notice in visitor.bench.notices)
    assert result.files_changed == ()


@pytest.mark.slow
async def test_cookies_of_a_session_last_to_the_next_step(visitor: Visitor, site: str) -> None:
    greet = {"do": "open", "url": f"http://{site}/greet"}
    assert "new" in (await visitor.browse(site, greet, {"do": "text"}, session="shop"))[1]
    assert "seen before" in (await visitor.browse(site, greet, {"do": "text"}, session="shop"))[1]
    assert "new" in (await visitor.browse(site, greet, {"do": "text"}))[1]


@pytest.mark.slow
async def test_an_action_that_does_not_work_fails_the_step_and_says_which(visitor: Visitor, site: str) -> None:
    result, said = await visitor.browse(site, {"do": "open", "url": f"http://{site}/missing"})
    assert (result.exit_code, "action 1 (open)" in said, "404" in said) == (1, True, True)


async def test_a_page_that_may_not_be_opened_is_refused_before_the_browser_starts(visitor: Visitor, site: str) -> None:
    with pytest.raises(OutsideRefused, match=r"may not reach evil\.test"):
        await visitor.browse(site, {"do": "open", "url": "http://evil.test/"})


async def test_a_secret_is_typed_only_into_a_page_that_the_step_opened(visitor: Visitor, site: str) -> None:
    fill = {"do": "fill", "selector": "input", "value": "${secrets.NAME}"}
    with pytest.raises(InvalidInput, match="begin with open"):
        await visitor.browse(site, fill, {"do": "open", "url": f"http://{site}/"})
