"""The console's files: at home below any path, kept by browsers for as long as they are the same, and nothing else."""

import re

import pytest

from tests.integration.api.running import Api, StartApi

LINK = re.compile(r'(?:src|href)="([^"]+)"')


async def test_an_address_without_its_last_slash_leads_to_the_console(api: Api) -> None:
    answer = await api.client().get("/console")
    assert (answer.status_code, answer.headers["location"]) == (307, "console/")


@pytest.mark.parametrize("page", ["", "runs", "runs/01936f7e-9f5c/log", "files/a%2Fb", "a/b/c/d/"])
async def test_every_link_of_a_page_leads_to_a_file_whatever_the_depth_of_its_address(api: Api, page: str) -> None:
    http = api.client()
    answer = await http.get(f"/console/{page}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    links = LINK.findall(answer.text)
    assert len(links) >= 3
    for link in links:
        file = await http.get(str(answer.url.join(link)))
        assert (file.status_code, file.headers["content-type"].startswith("text/html")) == (200, False), link


async def test_below_a_path_of_a_proxy_the_links_are_the_same(start_api: StartApi) -> None:
    api = await start_api(api_root_path="/agents")
    http = api.client()
    answer = await http.get("/agents/console/runs/1")
    script = next(link for link in LINK.findall(answer.text) if link.endswith(".js"))
    assert (await http.get(str(answer.url.join(script)))).status_code == 200
    assert (await http.get("/agents/console")).headers["location"] == "console/"


async def test_a_page_runs_nothing_but_its_own_files(api: Api) -> None:
    answer = await api.client().get("/console/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style| style=| on\w+=", answer.text)
    assert "http" not in re.sub(r"http-equiv", "", answer.text)


async def test_files_with_a_digest_in_their_name_are_kept_and_the_document_is_asked_for(api: Api) -> None:
    http = api.client()
    document = await http.get("/console/")
    assert document.headers["cache-control"] == "no-cache"
    again = await http.get("/console/runs", headers={"If-None-Match": document.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    script = next(link for link in LINK.findall(document.text) if link.endswith(".js"))
    assert "immutable" in (await http.get(str(document.url.join(script)))).headers["cache-control"]


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, br", "gzip"), ("gzip;q=0", None), ("br", None)])
async def test_files_are_pressed_for_those_who_take_it(api: Api, accepted: str, encoding: str | None) -> None:
    http = api.client()
    plain = await http.get("/console/", headers={"Accept-Encoding": "identity"})
    answer = await http.get("/console/", headers={"Accept-Encoding": accepted})
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.text == plain.text


@pytest.mark.parametrize("path", ["assets/none.js", "assets/../../docs.js", "assets/..%2f..%2fdocs.js", "assets/"])
async def test_what_is_no_file_of_the_build_is_not_found_and_nothing_else_is_read(api: Api, path: str) -> None:
    answer = await api.client().get(f"/console/{path}")
    assert b"openapi" not in answer.content
    assert answer.status_code == 404 or "console-root" in answer.text
