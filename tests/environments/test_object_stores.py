"""What stands at S3_ENDPOINT in customers' networks, and is no object store, or not the right one: the error says what
came back and which setting to look at, at the start, in a health check or `agentctl doctor`, and in a step.

Elsewhere (tests/contracts/workspace/test_stores.py): wrong keys, a missing bucket, a store that is away or answers 5xx.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from backplane.errors import NotFound, Unavailable
from backplane.workspace.base import WorkspaceStore
from tests.contracts.workspace.workspaces import s3_store
from tests.e2e.test_agentctl_up import agentctl
from tests.environments.answers import Answer, Asked, answering, page, without_header
from tests.servers import S3Server

NO_STORE = r"What answers is no object store: it gave .*S3_ENDPOINT"
TRY_OTHERS = r"S3_ENDPOINT .*S3_VIRTUAL_HOST=true"
MOVED = b"<Error><Code>PermanentRedirect</Code><Message>Use the bucket's own endpoint</Message></Error>"


def to(location: str, status: int) -> Answer:
    return Answer(status, {"Location": location})


@dataclass(frozen=True)
class Row:
    """`at_start`, `later`: what the error says, as a regular expression. Later nothing asks for the bucket itself."""

    answer: Callable[[Asked], Answer]
    at_start: str
    later: str


ROWS = {
    "a login page": Row(lambda _: page(200), NO_STORE, NO_STORE),
    "a web server that knows no such path": Row(
        lambda _: page(404), r"S3_CREATE_BUCKET=true\. The answer is a web page.*S3_ENDPOINT", NO_STORE
    ),
    "a port that speaks TLS": Row(
        lambda _: page(400), "gave 400 with a web page.*S3_ENDPOINT", "gave 400 with a web page.*S3_ENDPOINT"
    ),
    "a proxy that forbids": Row(
        lambda _: page(403), "S3_ACCESS_KEY.*The answer is a web page", "gave 403 with a web page.*S3_ENDPOINT"
    ),
    "a bucket in another region": Row(
        lambda _: Answer(301, {"x-amz-bucket-region": "eu-west-1", "Content-Type": "application/xml"}, MOVED),
        rf"redirects \(301\)\. Set S3_REGION=eu-west-1, {TRY_OTHERS}",
        rf"redirects \(301\)\. Set S3_REGION to the bucket's region, {TRY_OTHERS}",
    ),
    "a wrong region that is refused": Row(
        lambda _: Answer(400, {"x-amz-bucket-region": "eu-west-1"}), "S3_REGION=eu-west-1", "answered 400.*S3_REGION"
    ),
    "a redirect to a host": Row(
        lambda asked: to(f"https://bucket.s3.example.org{asked.path}?X-Amz-Signature=abc", 307),
        rf"redirects \(307 to https://bucket\.s3\.example\.org\)\. Set .*{TRY_OTHERS}",
        rf"redirects \(307\)\. Set .*{TRY_OTHERS}",
    ),
    "a redirect to itself": Row(
        lambda asked: to(f"http://{asked.headers['host']}{asked.path}", 302),
        rf"redirects \(302 to http://127\.0\.0\.1:\d+\)\. Set .*{TRY_OTHERS}",
        rf"redirects \(302\)\. Set .*{TRY_OTHERS}",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
async def test_what_is_no_store_is_named_at_the_start_in_a_check_and_in_a_step(row: Row) -> None:
    with answering(row.answer) as endpoint:
        store = s3_store(endpoint, "bucket")
        workspace = store.workspace("u", "r")
        calls: list[tuple[Awaitable[object], str]] = [
            (store.prepare(), row.at_start),
            (store.check(), row.later),
            (workspace.put("a", b"x"), row.later),
        ]
        for call, expected in calls:
            with pytest.raises(Unavailable, match=expected) as raised:
                await call
            assert (raised.value.part, raised.value.refuses) == ("workspace", True)
            assert "Signature" not in raised.value.message
        await store.close()


async def everything_that_reads(store: WorkspaceStore, tmp_path: Path) -> list[object]:
    workspace = store.workspace("u", "r")
    calls: list[Awaitable[object]] = [
        workspace.list(),
        workspace.stat("a"),
        workspace.get("a"),
        anext(aiter(workspace.read("a"))),
        workspace.delete("a"),
        workspace.download("a", tmp_path / "a"),
    ]
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_a_login_page_is_never_taken_for_a_file(tmp_path: Path) -> None:
    with answering(lambda _: page(200)) as endpoint:
        store = s3_store(endpoint, "bucket")
        assert [type(each) for each in await everything_that_reads(store, tmp_path)] == [Unavailable] * 6
        assert not (tmp_path / "a").exists()
        await store.close()


async def test_a_proxy_that_loses_etags_before_a_real_store_is_named(s3_server: S3Server, bucket: str) -> None:
    with answering(without_header(s3_server.port, "ETag")) as endpoint:
        store = s3_store(endpoint, bucket)
        with pytest.raises(Unavailable, match=r"The object store keeps files, .* without the header ETag"):
            await store.prepare()
        await store.close()


async def test_a_store_without_last_modified_is_used(s3_server: S3Server, bucket: str) -> None:
    with answering(without_header(s3_server.port, "Last-Modified")) as endpoint:
        store = s3_store(endpoint, bucket)
        await store.prepare()
        await store.check()
        workspace = store.workspace("u", "r")
        written = await workspace.put("a", b"content")
        assert (await workspace.get("a"))[1] == b"content"
        assert (await workspace.stat("a")).etag == written.etag
        await store.close()


@pytest.mark.parametrize("page_of", ["list", "content"])
async def test_a_web_page_in_place_of_one_answer_alone_is_found_at_the_start(
    s3_server: S3Server, bucket: str, page_of: str
) -> None:
    real = without_header(s3_server.port, "")

    def answer(asked: Asked) -> Answer:
        is_list = "list-type" in asked.path
        wanted = asked.method == "GET" and is_list == (page_of == "list")
        return Answer(200, {"ETag": '"e"'}, b"<html><body>Hello</body></html>") if wanted else real(asked)

    with answering(answer) as endpoint:
        store = s3_store(endpoint, bucket)
        with pytest.raises(Unavailable, match=NO_STORE):
            await store.prepare()
        await store.close()


@pytest.mark.parametrize("name", ["NoSuchBucket", "<Code>NoSuchBucket<", "<html>", "Debug source: body: Some(<html>"])
async def test_the_name_of_a_missing_file_is_not_taken_for_the_store_s_answer(
    s3_server: S3Server, bucket: str, name: str
) -> None:
    store = s3_store(s3_server.endpoint, bucket)
    for call in (store.workspace("u", "r").get, store.workspace("u", "r").stat):
        with pytest.raises(NotFound):
            await call(name)
    await store.close()


@pytest.mark.slow
def test_the_doctor_names_a_login_page_at_the_endpoint(tmp_path: Path) -> None:
    with answering(lambda _: page(200)) as endpoint:
        settings = {"S3_ENDPOINT": endpoint, "S3_BUCKET": "b", "S3_ACCESS_KEY": "k", "S3_SECRET_KEY": "s"}
        ended = agentctl("doctor", "--json", folder=tmp_path, **settings)
    [found] = [each for each in json.loads(ended.stdout)["findings"] if each["part"] == "workspaces"]
    assert (ended.returncode, found["state"]) == (1, "missing")
    assert "no object store: it gave a web page" in found["hint"]
