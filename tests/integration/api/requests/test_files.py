"""A run's files over HTTP: streamed both ways, whole or not at all, and never outside of the run."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from app.routes import files
from tests.integration.api.running import Api, Person, StartApi, StartWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = b"0123456789"


@pytest_asyncio.fixture(loop_scope="module")
async def run_id(person: Person) -> str:
    return await person.make("create")


async def put(person: Person, run_id: str, path: str, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    return await person.http.put(f"/agent/runs/{run_id}/files/{path}", content=content)


async def get(person: Person, run_id: str, path: str, range: str | None = None) -> httpx.Response:
    headers = {"Range": range} if range is not None else {}
    return await person.http.get(f"/agent/runs/{run_id}/files/{path}", headers=headers)


async def names(person: Person, run_id: str, prefix: str = "") -> list[str]:
    answer = await person.http.get(f"/agent/runs/{run_id}/files", params={"prefix": prefix})
    assert answer.status_code == 200, answer.text
    return [file["path"] for file in answer.json()["files"]]


async def test_a_file_that_is_put_before_start_is_there_for_the_run(
    api: Api, person: Person, start_worker: StartWorker
) -> None:
    plan = {"steps": [{"id": "read", "tool": "file_read", "arguments": {"path": "in/put.txt"}}]}
    run_id = await person.make("create", plan=plan)
    answer = await put(person, run_id, "in/put.txt", "brought älong".encode())
    assert (answer.status_code, answer.json()["path"], answer.json()["size"]) == (201, "in/put.txt", 14)
    start_worker(api.settings)
    await person.act("start", run_id)
    assert (await person.watch(run_id))[-1].data["status"] == "completed"
    [step] = (await person.show(run_id))["steps"]
    assert "brought älong" in json.dumps(step["result"], ensure_ascii=False)


async def test_a_file_is_got_as_it_was_put(person: Person, run_id: str) -> None:
    content = bytes(range(256)) * 20_000
    put_answer = await put(person, run_id, "a b/ü.bin", content)
    got = await get(person, run_id, "a b/ü.bin")
    assert (got.status_code, got.content) == (200, content)
    assert got.headers["content-length"] == str(len(content))
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["etag"] == f'"{put_answer.json()["etag"]}"'


async def test_a_file_is_not_taken_for_a_page_of_this_site(person: Person, run_id: str) -> None:
    await put(person, run_id, "x.html", b"<script>alert(1)</script>")
    headers = (await get(person, run_id, "x.html")).headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "attachment"


@pytest.mark.parametrize(
    ("range", "expected"),
    [
        ("bytes=0-0", b"0"),
        ("bytes=2-4", b"234"),
        ("bytes=2-99", b"23456789"),
        ("bytes=7-", b"789"),
        ("bytes=-3", b"789"),
        ("bytes=-99", b"0123456789"),
        ("bytes=9-9", b"9"),
    ],
)
async def test_a_range_gives_these_bytes(person: Person, run_id: str, range: str, expected: bytes) -> None:
    await put(person, run_id, "a.txt", CONTENT)
    got = await get(person, run_id, "a.txt", range)
    assert (got.status_code, got.content) == (206, expected)
    first = CONTENT.index(expected)
    assert got.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/10"
    assert got.headers["content-length"] == str(len(expected))


@pytest.mark.parametrize("range", ["bytes=10-", "bytes=10-12", "bytes=99-100", "bytes=-0"])
async def test_a_range_outside_of_the_file_cannot_be_satisfied(person: Person, run_id: str, range: str) -> None:
    await put(person, run_id, "a.txt", CONTENT)
    got = await get(person, run_id, "a.txt", range)
    assert (got.status_code, got.json()["code"]) == (416, "range_not_satisfiable")
    assert got.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("range", ["bytes", "bytes=", "bytes=-", "bytes=4-2", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"])
async def test_a_range_that_is_malformed_or_manifold_is_passed_over(person: Person, run_id: str, range: str) -> None:
    await put(person, run_id, "a.txt", CONTENT)
    got = await get(person, run_id, "a.txt", range)
    assert (got.status_code, got.content) == (200, CONTENT)


async def test_an_empty_file_is_a_file(person: Person, run_id: str) -> None:
    assert (await put(person, run_id, "empty", b"")).json()["size"] == 0
    assert (await get(person, run_id, "empty")).content == b""
    assert (await get(person, run_id, "empty", "bytes=0-")).status_code == 416
    assert await names(person, run_id) == ["empty"]


async def test_a_file_that_is_not_there_is_not_found(person: Person, run_id: str) -> None:
    await put(person, run_id, "a/b.txt", CONTENT)
    for path in ("nothing", "a", "a/nothing", "a/b.txt/c"):
        got = await get(person, run_id, path)
        assert (got.status_code, got.json()["code"]) == (404, "not_found"), path


async def test_a_file_where_a_folder_is_and_a_folder_where_a_file_is_are_conflicts(person: Person, run_id: str) -> None:
    await put(person, run_id, "a/b.txt", CONTENT)
    for path in ("a", "a/b.txt/c"):
        assert (await put(person, run_id, path, b"x")).status_code == 409, path
    assert await names(person, run_id) == ["a/b.txt"]


async def test_a_list_has_the_files_below_its_prefix(person: Person, run_id: str) -> None:
    for path in ("b.txt", "a/two.txt", "a/one.txt", "ab/three.txt"):
        await put(person, run_id, path, b"x")
    assert await names(person, run_id) == ["a/one.txt", "a/two.txt", "ab/three.txt", "b.txt"]
    assert await names(person, run_id, "a") == await names(person, run_id, "a/") == ["a/one.txt", "a/two.txt"]
    assert await names(person, run_id, "b.txt") == ["b.txt"]
    assert await names(person, run_id, "nothing") == []


PATHS_OUTSIDE = [
    "../x",
    "a/../../x",
    "..",
    ".",
    "a/./b",
    "%2e%2e/x",
    "%2E%2E%2Fx",
    "..%2f..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "a//b",
    "a/",
    "",
    "..%5cx",
    "a%5Cb",
    "%00",
    "a%00.txt",
    "%7f",
    "a" * 901,
    "a/" * 65 + "a",
    "b" * 256,
]


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("path", PATHS_OUTSIDE, ids=[path[:30] or "empty" for path in PATHS_OUTSIDE])
async def test_a_name_that_no_workspace_can_hold_is_refused(
    api: Api, person: Person, run_id: str, method: str, path: str
) -> None:
    before = stored(api)
    status, body = await raw(api, person, method, f"/agent/runs/{run_id}/files/{path}")
    assert (status, json.loads(body)["code"]) == (422, "invalid_path"), body
    assert json.loads(body)["field"] == "path"
    assert await names(person, run_id) == []
    assert stored(api) == before


def stored(api: Api) -> set[str]:
    return {str(path) for path in api.settings.workspace_dir.parent.rglob("*") if "agent.db" not in path.name}


@pytest.mark.parametrize("prefix", ["../", "..", "/etc", "a\\b", "a\0b"])
async def test_a_prefix_that_no_workspace_can_hold_is_refused(person: Person, run_id: str, prefix: str) -> None:
    answer = await person.http.get(f"/agent/runs/{run_id}/files", params={"prefix": prefix})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_path")


async def test_five_gigabytes_are_refused_before_the_first_byte(api: Api, person: Person, run_id: str) -> None:
    status, body = await raw(api, person, "PUT", f"/agent/runs/{run_id}/files/big", "Content-Length: 5368709120\r\n")
    assert (status, json.loads(body)["code"]) == (413, "workspace_quota_exceeded")
    assert "WORKSPACE_MAX_BYTES" in json.loads(body)["detail"]


async def test_a_file_that_grows_over_the_quota_is_refused_and_the_old_one_stays(start_api: StartApi) -> None:
    api = await start_api(workspace_max_bytes=1_000_000)
    person = await api.person()
    run_id = await person.make("create")
    await put(person, run_id, "a", b"old")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    answer = await put(person, run_id, "a", endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "workspace_quota_exceeded")
    assert (await get(person, run_id, "a")).content == b"old"
    assert arriving(api) == []


async def test_a_file_too_many_is_refused(start_api: StartApi) -> None:
    api = await start_api(workspace_max_files=2)
    person = await api.person()
    run_id = await person.make("create")
    answers = [await put(person, run_id, name, b"x") for name in ("a", "b", "c", "a")]
    assert [answer.status_code for answer in answers] == [201, 201, 413, 201]


async def test_a_file_is_replaced_whole_or_not_at_all(person: Person, run_id: str) -> None:
    await put(person, run_id, "a", b"old" * 1000)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"new" * 500
        begun.set()
        await go_on.wait()
        yield b"new" * 500

    writing = asyncio.create_task(put(person, run_id, "a", slow()))
    await begun.wait()
    assert (await get(person, run_id, "a")).content == b"old" * 1000
    go_on.set()
    assert (await writing).status_code == 201
    assert (await get(person, run_id, "a")).content == b"new" * 1000


async def test_an_upload_that_breaks_off_leaves_the_old_file_and_is_no_fault(
    api: Api, person: Person, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    await put(person, run_id, "a", b"old")
    host, _, port = api.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PUT /agent/runs/{run_id}/files/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {person.token}\r\n"
    writer.write(f"{head}Content-Length: 100\r\n\r\nnew".encode())
    await wait_until(lambda: arriving(api))
    writer.close()
    await writer.wait_closed()
    await wait_until(lambda: not arriving(api))
    assert (await get(person, run_id, "a")).content == b"old"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def arriving(api: Api) -> list[str]:
    """What is being received at this moment."""
    return [file.name for file in (api.settings.workspace_dir / ".incoming").iterdir() if file.name != "probe"]


async def test_a_file_that_was_replaced_while_it_is_read_has_one_content(person: Person, run_id: str) -> None:
    old, new = b"o" * 3_000_000, b"n" * 3_000_000
    await put(person, run_id, "a", old)
    async with person.http.stream("GET", f"/agent/runs/{run_id}/files/a") as reading:
        chunks = reading.aiter_bytes(100_000)
        received = await anext(chunks)
        await put(person, run_id, "a", new)
        async for chunk in chunks:
            received += chunk
    assert received == old


async def raw(api: Api, person: Person, method: str, path: str, headers: str = "") -> tuple[int, bytes]:
    """Status and body of the answer to exactly this path, of which a client's library would make another one."""
    if method == "PUT" and not headers:
        headers = "Content-Length: 0\r\n"
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {person.token}\r\n{headers}\r\n"
    head, body = await api.answer_to(request)
    return int(head.split()[1]), body


# --- pages ---


async def test_files_come_in_pages_to_whoever_asks_for_pages_and_else_all_at_once(person: Person, run_id: str) -> None:
    paths = sorted(["a", "a/b", "a.txt", "b/ü", "b/z", "c,d", "ä"])
    for path in paths:
        if path != "a":  # it is a folder
            await put(person, run_id, path, b"x")
    paths.remove("a")
    whole = (await person.http.get(f"/agent/runs/{run_id}/files")).json()
    assert ([file["path"] for file in whole["files"]], whole["next_cursor"]) == (paths, None)
    for limit in (1, 2, 4, 6, 7):
        found, cursor = [], ""
        while cursor is not None:
            parameters = {"limit": limit, **({"cursor": cursor} if cursor else {})}
            page = (await person.http.get(f"/agent/runs/{run_id}/files", params=parameters)).json()
            assert 1 <= len(page["files"]) <= limit
            found += page["files"]
            cursor = page["next_cursor"]
        assert found == whole["files"]


async def test_a_page_goes_on_where_its_cursor_was_though_that_file_is_gone(person: Person, run_id: str) -> None:
    for path in "abc":
        await put(person, run_id, path, b"x")
    await person.http.delete(f"/agent/runs/{run_id}/files/b")
    page = (await person.http.get(f"/agent/runs/{run_id}/files", params={"cursor": "b", "limit": 5})).json()
    assert ([file["path"] for file in page["files"]], page["next_cursor"]) == (["c"], None)


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "x"])
async def test_a_limit_that_no_page_has_is_refused(person: Person, run_id: str, limit: str) -> None:
    answer = await person.http.get(f"/agent/runs/{run_id}/files", params={"limit": limit})
    assert (answer.status_code, answer.json()["field"]) == (422, "limit")


async def test_a_list_of_any_length_is_the_same_as_its_files(
    person: Person, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ENCODED_AT_ONCE", 2)
    for count in range(1, 6):
        file = (await put(person, run_id, f"{count}.txt", b"x" * count)).json()
        listed = (await person.http.get(f"/agent/runs/{run_id}/files")).json()["files"]
        assert len(listed) == count
        assert listed[-1] == file
