"""The API's client: every call that the other commands make, and the streams.

It knows the HTTP API and nothing behind it, so it is also the example of how a production client behaves: it repeats
only what is safe to repeat (reads, and writes that carry an Idempotency-Key or change nothing the second time), waits
as long as Retry-After asks, goes on with a stream at the last event it has seen, and moves files without holding them
in memory. It prints nothing: what a person should know meanwhile goes to `notify`.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from agentctl.api.agent_calls import AgentCalls
from agentctl.api.api_error import ApiError, JsonObject, raise_for_problem, reason_of
from agentctl.api.event_stream import LONGEST_PAUSE, Pauses, StreamPosition, is_bus_event, reconnecting
from agentctl.api.gpu_calls import GpuCalls
from agentctl.api.pages import following
from agentctl.api.proxies import client_of
from agentctl.api.request_parts import given, segment
from agentctl.api.schedule_calls import ScheduleCalls
from agentctl.api.service_calls import ServiceCalls
from agentctl.deployments.calls import DeploymentCalls
from agentctl.exit_codes import CommandError, ExitCode
from backplane.domain.events import LIVE_ONLY

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
CALL_PAUSES = (0.2, 0.5, 1.0)
STREAM_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0)
CHUNK_BYTES = 256 * 1024
FILES_PAGE = 10_000
"""The most that the API gives: each page costs it a listing of the whole workspace."""


class Client(AgentCalls, ScheduleCalls, ServiceCalls, GpuCalls, DeploymentCalls):
    """Every method raises ApiError for an error answer and CommandError(UNREACHABLE) when there is no answer."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        notify: Callable[[str], None] = lambda _: None,
        call_pauses: Sequence[float] = CALL_PAUSES,
        stream_pauses: Sequence[float] = STREAM_PAUSES,
    ) -> None:
        self._http = http
        self._notify = notify
        self._call_pauses = call_pauses
        self._stream_pauses = stream_pauses

    async def create(self, new_run: JsonObject, *, start: bool) -> JsonObject:
        """Make a run (and start it). Safe to repeat: all tries carry the same Idempotency-Key."""
        body = {"action": "run" if start else "create", **new_run}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._json("POST", "/agent/execute", repeatable=True, json=body, headers=headers)

    async def execute(self, action: str, run_id: str, **arguments: Any) -> JsonObject:
        """start, cancel, retry or status. A retry is sent again only when the first one cannot have arrived."""
        body = {"action": action, "run_id": run_id, **arguments}
        return await self._json("POST", "/agent/execute", repeatable=action != "retry", json=body)

    async def derive(self, action: str, run_id: str, **arguments: Any) -> JsonObject:
        """fork or replay. Safe to repeat, like `create`."""
        body = {"action": action, "run_id": run_id, **arguments}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._json("POST", "/agent/execute", json=body, headers=headers)

    async def decisions(
        self, run_id: str | None = None, status: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> JsonObject:
        """The decisions of one run, or of all runs of the user."""
        wanted = given(status=status, cursor=cursor, limit=limit)
        path = f"/agent/runs/{segment(run_id)}/decisions" if run_id is not None else "/agent/decisions"
        return await self._json("GET", path, params=wanted)

    async def decide(self, run_id: str, decision_id: str, answer: JsonObject) -> JsonObject:
        """Safe to repeat: the same answer again changes nothing."""
        return await self._json("POST", f"/agent/runs/{segment(run_id)}/decisions/{segment(decision_id)}", json=answer)

    async def plans(self, run_id: str) -> list[JsonObject]:
        found: list[JsonObject] = (await self._json("GET", f"/agent/runs/{segment(run_id)}/plans"))["plans"]
        return found

    async def model_calls(self, run_id: str) -> list[JsonObject]:
        """All of them, without their texts."""
        found: list[JsonObject] = []
        cursor: int | None = 0
        while cursor is not None:
            params = {"cursor": cursor, "limit": 200}
            page = await self._json("GET", f"/agent/runs/{segment(run_id)}/model-calls", params=params)
            found += page["calls"]
            cursor = following(cursor, page["next_cursor"])
        return found

    async def model_call(self, run_id: str, call_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/runs/{segment(run_id)}/model-calls/{segment(call_id)}")

    async def run(self, run_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/runs/{segment(run_id)}")

    async def validate(self, run: JsonObject) -> JsonObject:
        """What would be wrong with a run of these fields, those of `create`."""
        return await self._json("POST", "/agent/execute", json={**run, "action": "validate"})

    async def tools(self) -> JsonObject:
        return await self._json("GET", "/agent/tools")

    async def tool(self, name: str) -> JsonObject:
        return await self._json("GET", f"/agent/tools/{segment(name)}")

    async def handlers(self) -> JsonObject:
        return await self._json("GET", "/agent/handlers")

    async def handler(self, name: str) -> JsonObject:
        return await self._json("GET", f"/agent/handlers/{segment(name)}")

    async def runs(
        self, status: str | None = None, cursor: str | None = None, limit: int = 50, **conditions: str | None
    ) -> JsonObject:
        wanted = given(status=status, cursor=cursor, limit=limit, **conditions)
        return await self._json("GET", "/agent/runs", params=wanted)

    async def logs(self, run_id: str, after: int = 0, limit: int = 500) -> JsonObject:
        return await self._json("GET", f"/agent/logs/{segment(run_id)}", params={"after": after, "limit": limit})

    async def audit_entries(self, cursor: str | None = None, limit: int = 50, **conditions: str | None) -> JsonObject:
        return await self._json("GET", "/agent/audit", params=given(cursor=cursor, limit=limit, **conditions))

    async def search_log(self, run_id: str, text: str, after: int = 0) -> JsonObject:
        return await self._json("GET", f"/agent/logs/{segment(run_id)}/search", params={"q": text, "after": after})

    async def files(self, run_id: str, prefix: str = "") -> list[JsonObject]:
        found: list[JsonObject] = []
        cursor: str | None = ""
        while cursor is not None:
            params = given(prefix=prefix or None, cursor=cursor or None, limit=FILES_PAGE)
            page = await self._json("GET", f"/agent/runs/{segment(run_id)}/files", params=params)
            found += page["files"]
            cursor = following(cursor, page.get("next_cursor"))  # an older server sends all at once
        return found

    async def explain(self, run_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/runs/{segment(run_id)}/explain")

    async def queue(self, name: str | None = None) -> JsonObject:
        return await self._json("GET", "/agent/queue", params=given(queue=name))

    async def queues(self) -> list[JsonObject]:
        found: list[JsonObject] = (await self._json("GET", "/agent/queues"))["queues"]
        return found

    async def dead_letters(
        self, reason: str | None = None, cursor: str | None = None, limit: int = 50, id_beginning: str | None = None
    ) -> JsonObject:
        wanted = given(reason=reason, cursor=cursor, limit=limit, id_beginning=id_beginning)
        return await self._json("GET", "/agent/dead-letters", params=wanted)

    async def dead_letter(self, run_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/dead-letters/{segment(run_id)}")

    async def redrive(self, run_id: str) -> JsonObject:
        """Sent again only when the first one cannot have arrived."""
        return await self._json("POST", f"/agent/dead-letters/{segment(run_id)}/redrive", repeatable=False)

    async def redrive_oldest(self, limit: int) -> JsonObject:
        """Sent again only when the first one cannot have arrived: its answer says how many were redriven."""
        return await self._json("POST", "/agent/dead-letters/redrive", repeatable=False, params={"limit": limit})

    async def purge(self, run_id: str | None) -> JsonObject:
        """One dead letter, or with None all of them."""
        path = f"/{segment(run_id)}" if run_id is not None else ""
        return await self._json("DELETE", f"/agent/dead-letters{path}", repeatable=False)

    async def accounts(self, owner: str | None = None, cursor: str | None = None, limit: int = 50) -> JsonObject:
        wanted = given(owner=owner, cursor=cursor, limit=limit)
        return await self._json("GET", "/agent/accounts", params=wanted)

    async def account(self, account_id: str, cursor: str | None = None, limit: int = 50) -> JsonObject:
        wanted = given(cursor=cursor, limit=limit)
        return await self._json("GET", f"/agent/accounts/{segment(account_id)}", params=wanted)

    async def move(self, action: str, account_id: str, movement: JsonObject) -> JsonObject:
        """top-up or withdraw. The movement carries a transfer_id, so it is safe to repeat; so is a transfer."""
        return await self._json("POST", f"/agent/accounts/{segment(account_id)}/{action}", json=movement)

    async def transfer(self, movement: JsonObject) -> JsonObject:
        return await self._json("POST", "/agent/accounts/transfer", json=movement)

    async def close_account(self, account_id: str) -> JsonObject:
        return await self._json("DELETE", f"/agent/accounts/{segment(account_id)}")

    async def audit(self) -> JsonObject:
        return await self._json("GET", "/agent/ledger/audit")

    async def budget(self) -> JsonObject:
        return await self._json("GET", "/agent/budget")

    async def usage(self, wanted: JsonObject | None = None) -> JsonObject:
        return await self._json("GET", "/agent/usage", params=given(**(wanted or {})))

    async def delete(self, run_id: str) -> None:
        """Sent again only when the first one cannot have arrived: the second would find nothing."""
        await self._nothing("DELETE", f"/agent/runs/{segment(run_id)}")

    async def put_secret(self, name: str, secret: JsonObject) -> JsonObject:
        return await self._json("PUT", f"/agent/secrets/{segment(name)}", json=secret)

    async def secrets(self) -> list[JsonObject]:
        """Without their values."""
        secrets: list[JsonObject] = (await self._json("GET", "/agent/secrets"))["secrets"]
        return secrets

    async def delete_secret(self, name: str) -> None:
        """Sent again only when the first one cannot have arrived: the second would find nothing."""
        await self._nothing("DELETE", f"/agent/secrets/{segment(name)}")

    async def artifacts(self, agent: str) -> JsonObject:
        return await self._json("GET", f"/agent/artifacts/{segment(agent)}")

    async def artifacts_at(self, user: str, agent: str, commit: str) -> JsonObject:
        return await self._json("GET", f"{_artifacts_url(user, agent)}/files", params={"commit": commit})

    async def artifact_log(self, user: str, agent: str, cursor: str | None = None, limit: int = 50) -> JsonObject:
        wanted = given(cursor=cursor, limit=limit)
        return await self._json("GET", f"{_artifacts_url(user, agent)}/log", params=wanted)

    async def roll_back_artifacts(self, user: str, agent: str, commit: str) -> JsonObject:
        """Safe to repeat: what is so already is left as it is."""
        return await self._json("POST", f"{_artifacts_url(user, agent)}/rollback", json={"commit": commit})

    async def artifact(self, agent: str, path: str) -> bytes:
        return await self._bytes(f"/agent/artifacts/{segment(agent)}/content", {"path": path})

    async def artifact_at(self, user: str, agent: str, commit: str, path: str) -> bytes:
        return await self._bytes(f"{_artifacts_url(user, agent)}/show", {"commit": commit, "path": path})

    async def webhook_secret(self) -> JsonObject:
        return await self._json("GET", "/agent/webhook-secret")

    async def rotate_webhook_secret(self) -> JsonObject:
        """Sent again only when the first one cannot have arrived: twice, and the secret in use signs no more."""
        return await self._json("POST", "/agent/webhook-secret/rotate", repeatable=False)

    async def bulk(self, action: str, wanted: JsonObject, *, dry_run: bool = False) -> JsonObject:
        """Safe to repeat, like `create`."""
        body = {"action": action, "filter": wanted, **({"dry_run": True} if dry_run else {})}
        return await self._json("POST", "/agent/bulk", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})

    async def bulk_actions(self, cursor: str | None = None, limit: int = 50) -> JsonObject:
        return await self._json("GET", "/agent/bulk", params=given(cursor=cursor, limit=limit))

    async def bulk_action(self, bulk_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/bulk/{segment(bulk_id)}")

    async def bulk_runs(self, bulk_id: str, status: str | None = None) -> list[JsonObject]:
        """All, or those of which this has come."""
        found: list[JsonObject] = []
        cursor: int | None = 0
        while cursor is not None:
            params = given(status=status, cursor=cursor, limit=200)
            page = await self._json("GET", f"/agent/bulk/{segment(bulk_id)}/runs", params=params)
            found += page["runs"]
            cursor = following(cursor, page["next_cursor"])
        return found

    async def stop_bulk_action(self, bulk_id: str) -> JsonObject:
        return await self._json("DELETE", f"/agent/bulk/{segment(bulk_id)}")

    async def export(self, run_id: str) -> JsonObject:
        """Safe to repeat, like `create`."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._json("POST", f"/agent/runs/{segment(run_id)}/export", headers=headers)

    async def exports(self, cursor: str | None = None, limit: int = 50) -> JsonObject:
        return await self._json("GET", "/agent/exports", params=given(cursor=cursor, limit=limit))

    async def remove_export(self, export_id: str) -> JsonObject:
        return await self._json("DELETE", f"/agent/exports/{segment(export_id)}")

    async def export_of(self, export_id: str) -> JsonObject:
        return await self._json("GET", f"/agent/exports/{segment(export_id)}")

    @asynccontextmanager
    async def archive(self, export_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of an export's archive, in chunks. One that breaks off in the middle raises."""
        response = await self._open("GET", f"/agent/exports/{segment(export_id)}/archive")
        try:
            yield self._chunks(response)
        finally:
            await response.aclose()

    async def readiness(self) -> JsonObject:
        """What /health/ready says, also when it says no. Asked once: whoever waits for it asks again."""
        try:
            response = await self._http.get("/health/ready")
            body: JsonObject = response.json()
        except (httpx.RequestError, ValueError) as error:
            raise self._unreachable(error) from None
        if "parts" not in body:
            raise self._unreachable(ValueError("its answer is not that of this API"))
        return body

    @asynccontextmanager
    async def download(self, run_id: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a file, in chunks. A file that breaks off in the middle raises; nothing is cut silently."""
        response = await self._open("GET", _file_url(run_id, path))
        try:
            yield self._chunks(response)
        finally:
            await response.aclose()

    async def upload(self, run_id: str, path: str, content: BinaryIO, size: int | None) -> JsonObject:
        """Put a file. `size` is in bytes, None when it is not known beforehand, as with a pipe."""
        start = content.tell() if size is not None else 0

        async def chunks() -> AsyncIterator[bytes]:
            if size is not None:
                content.seek(start)
            while chunk := content.read(CHUNK_BYTES):
                yield chunk

        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        return await self._json(
            "PUT", _file_url(run_id, path), repeatable=size is not None, content=chunks, headers=headers
        )

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[JsonObject, None]:
        """Every event after number `after`, once and in order, until the run's end; reconnects by itself.

        Those that are live only (`position`, `progress`) have no number and may come again. Raises when the stream
        cannot be had any more.
        """
        last, position = after, StreamPosition(str(after) if after else "")
        url = f"/agent/logs/{segment(run_id)}/stream"
        async with aclosing(self._stream(url, f"The stream of run {run_id}", position)) as events:
            async for event in events:
                if event["type"] not in LIVE_ONLY:
                    if event["id"] <= last:
                        continue
                    last, position.ended = event["id"], event["type"] == "end"
                yield event

    async def all_events(self, after: str = "") -> AsyncGenerator[tuple[str, JsonObject], None]:
        """Every event of all the user's runs behind the cursor `after` ("": all that are kept, "now": those to come),
        each with the cursor to go on from; reconnects by itself, and has no end. Raises when it cannot be had any more.
        """
        position = StreamPosition("" if after == "now" else after)
        url = "/agent/events?after=now" if after == "now" else "/agent/events"
        async with aclosing(self._stream(url, "The stream of all runs", position)) as events:
            async for event in events:
                yield position.cursor, event

    async def publish(self, event: JsonObject) -> JsonObject:
        """Publish a CloudEvent. Safe to repeat: by its source and id it is stored once."""
        return await self._json(
            "POST", "/api/v1/events", json=event, headers={"Content-Type": "application/cloudevents+json"}
        )

    async def bus_page(self, after: int, limit: int, types: Sequence[str]) -> JsonObject:
        """Events of the bus behind a cursor."""
        params = {"after": after, "limit": limit, "type": list(types)}
        return await self._json("GET", "/api/v1/events", params=params)

    async def bus_events(self, after: str, types: Sequence[str]) -> AsyncGenerator[tuple[str, JsonObject], None]:
        """As `all_events`, of the event bus. What has the type `gap` says that events are missing."""
        position = StreamPosition("" if after == "now" else after)
        wanted = {"type": list(types), **({"after": "now"} if after == "now" else {})}
        url = str(httpx.URL("/api/v1/events/stream", params=wanted))
        pauses = Pauses(first=self._call_pauses, later=self._stream_pauses)
        name = "The stream of the event bus"
        following = reconnecting(self._http, url, name, position, pauses, self._notify, is_bus_event)
        async with aclosing(following) as events:
            async for event in events:
                yield position.cursor, event

    async def put_hook(self, name: str, hook: JsonObject) -> JsonObject:
        """Sent again only when the first one cannot have arrived: the second would not show the secret."""
        return await self._json("PUT", f"/api/v1/hooks/{segment(name)}", repeatable=False, json=hook)

    async def hooks(self) -> list[JsonObject]:
        """Without their secrets."""
        hooks: list[JsonObject] = (await self._json("GET", "/api/v1/hooks"))["hooks"]
        return hooks

    async def delete_hook(self, name: str) -> None:
        """Sent again only when the first one cannot have arrived: the second would find nothing."""
        await self._nothing("DELETE", f"/api/v1/hooks/{segment(name)}")

    def _stream(self, url: str, name: str, position: StreamPosition) -> AsyncGenerator[JsonObject, None]:
        pauses = Pauses(first=self._call_pauses, later=self._stream_pauses)
        return reconnecting(self._http, url, name, position, pauses, self._notify)

    async def _json(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> JsonObject:
        response = await self._open(method, url, repeatable=repeatable, **request)
        try:
            await response.aread()
            body = response.json()
        except (httpx.RequestError, ValueError) as error:
            raise self._unreachable(error) from None
        finally:
            await response.aclose()
        if not isinstance(body, dict):
            raise self._unreachable(ValueError("its answer is not that of this API"))
        return body

    async def _nothing(self, method: str, url: str, **request: Any) -> None:
        """A call whose answer has no body, sent again only when the first one cannot have arrived."""
        response = await self._open(method, url, repeatable=False, **request)
        await response.aclose()

    async def _bytes(self, url: str, params: Mapping[str, str]) -> bytes:
        """The whole of something small."""
        response = await self._open("GET", url, params=params)
        try:
            return await response.aread()
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        finally:
            await response.aclose()

    async def _open(
        self,
        method: str,
        url: str,
        *,
        repeatable: bool = True,
        content: Callable[[], AsyncIterator[bytes]] | None = None,
        **request: Any,
    ) -> httpx.Response:
        """Send, and again where that is safe; the answer is a success and its body is not yet read."""
        pauses = iter(self._call_pauses)
        while True:
            try:
                body = content() if content is not None else None
                message = self._http.build_request(method, url, content=body, **request)
                response = await self._http.send(message, stream=True)
            except httpx.RequestError as error:
                never_arrived = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if (pause := next(pauses, None)) is None or not (repeatable or never_arrived):
                    raise self._unreachable(error) from None
                self._notify(
                    f"{self._http.base_url} does not answer ({reason_of(error)}); trying again in {pause:g} s."
                )
            else:
                try:
                    await raise_for_problem(response)
                except ApiError as error:
                    # A full queue may take minutes: whoever waits for it should know, and choose to.
                    may_pass = error.status in {429, 503} and not error.is_for_want_of_room
                    # One that came too often was not looked at, so it can be sent again whatever it asks for.
                    harmless = repeatable or error.code == "rate_limited"
                    if not may_pass or not harmless or (pause := next(pauses, None)) is None:
                        raise
                    pause = max(pause, min(error.retry_after, LONGEST_PAUSE))
                    self._notify(f"{error.detail} Trying again in {pause:g} s.")
                else:
                    return response
            await asyncio.sleep(pause)

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.aiter_bytes(CHUNK_BYTES):
                yield chunk
        except httpx.RequestError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> CommandError:
        return CommandError(
            ExitCode.UNREACHABLE,
            f"The API at {self._http.base_url} cannot be reached: {reason_of(error)}. "
            "Is it running (`agentctl up`), and is AGENT_URL right?",
        )


@asynccontextmanager
async def connect(url: str, token: str, notify: Callable[[str], None]) -> AsyncIterator[Client]:
    """A client of the API at `url`; without a token only its health can be asked. The environment may name a proxy.
    Raises CommandError for one that cannot be used."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client_of(url, base_url=url, headers=headers, timeout=TIMEOUT) as http:
        yield Client(http, notify)


def _artifacts_url(user: str, agent: str) -> str:
    return f"/agent/artifacts/{segment(user)}/{segment(agent)}"


def _file_url(run_id: str, path: str) -> str:
    return f"/agent/runs/{segment(run_id)}/files/{'/'.join(_path_segments(path))}"


def _path_segments(path: str) -> Iterator[str]:
    """Escaped one by one. Dots are escaped too where they would be a way up: the server is to see and refuse them."""
    for part in path.split("/"):
        yield part.replace(".", "%2E") if part in {".", ".."} else quote(part, safe="", errors="surrogateescape")
