"""Requests to a Kubernetes API server: how often one is tried, what a failure means, watches, lists, applies, logs and
exec streams.

It is the only client of a cluster that the platform has: workers run sandboxes by it, the controller cleans up by it.
Requests are plain HTTP with JSON: the classes that a client library makes of each answer cost more than all the rest of
a request, and know less than a newer server sends. As whom requests are sent, `backplane.kubernetes.login` says. No
message or traceback made here has a header in it, so none has a token.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import aiohttp

from backplane.domain.retry import retry_after
from backplane.errors import Unavailable
from backplane.kubernetes.exec_stream import PROTOCOL, ExecStream
from backplane.kubernetes.login import Credentials, Login, open_login
from backplane.process.retrying import pauses

TRIES = 4
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
CLOSE_SECONDS = 1.0
WATCH_SECONDS = 30
"""The server ends a watch after so long, and the caller begins it anew: so a connection that died unseen is found."""
WATCH_SILENCE_SECONDS = WATCH_SECONDS + 5.0
LONGEST_ASKED_PAUSE_SECONDS = 5.0
LOG_SILENCE_SECONDS = 300.0
"""A pod may print nothing for long: after so much silence its log is asked for anew, since nobody sees a connection die
that carries nothing."""

_BROKEN = (aiohttp.ClientError, OSError, EOFError)
_TRY_AGAIN = (429, 500, 502, 503, 504)


class ApiRefused(Exception):
    """The server has refused a request for good. `reason` and `message` are its own words; what the refusal means is
    for the caller to judge, who knows what was asked."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    def unavailable(self, what: str) -> Unavailable:
        """The error for a caller that has no way on. `what` was asked for, such as "list jobs in agents-tools"."""
        advice = f"; let this process's service account {what}" if self.status in (401, 403) else ""
        return Unavailable(f"the API server refuses to {what}: {self.status} {self.message}{advice}", part="kubernetes")


class _Busy(Exception):
    def __init__(self, words: str, pause: float = 0.0) -> None:
        super().__init__(words)
        self.pause = pause


class _Unknown(_Busy):
    def __init__(self) -> None:
        super().__init__("it does not know these credentials; they may have run out, or been revoked")


Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request. `kind`: of the body."""

    method: str
    path: str
    query: Query = ()
    body: Any = None
    kind: str = "application/json"


class ApiServer:
    """Made by `open_api_server`. Any number of requests may be on their way at once."""

    def __init__(self, login: Login, session: aiohttp.ClientSession, part: str) -> None:
        self._login = login
        self._server = login.server
        self._session = session
        self._part = part
        self.requests = 0
        """Requests that were sent so far, each try and each watch counted: what a benchmark looks at."""

    async def call(self, method: str, path: str, query: Query = (), body: Any = None) -> dict[str, Any]:
        """The answer's JSON. A failure that may pass is tried again, TRIES times in all, so the request must be safe to
        repeat. Raises ApiRefused, and Unavailable when the server cannot be reached, is overloaded or broken."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return await self._again_and_again(_Sent(method, path, query, body, kind))

    async def apply(self, path: str, body: Any, *, manager: str) -> dict[str, Any]:
        """Make an object so, or create it: what `body` names belongs to the field manager `manager` then, whoever had
        it before, and what else is in the object stays. Answers the object. Raises as `call` does."""
        query = (("fieldManager", manager), ("force", "true"))
        return await self._again_and_again(_Sent("PATCH", path, query, body, "application/apply-patch+yaml"))

    async def _again_and_again(self, sent: _Sent) -> dict[str, Any]:
        for number, pause in enumerate(pauses(), start=1):
            credentials = await self._login.credentials()
            try:
                return await self._once(credentials, sent)
            except _Busy as error:
                if isinstance(error, _Unknown):
                    await self._login.renew(credentials)
                if number == TRIES:
                    raise self.unavailable(str(error)) from None
                await asyncio.sleep(max(pause, error.pause))
        raise AssertionError("pauses never end")

    async def pages(self, path: str, query: Query = (), *, page: int) -> AsyncIterator[dict[str, Any]]:
        """All objects of a list that may be long, `page` of them a request. Raises as `call` does."""
        following: Query = ()
        while True:
            listed = await self.call("GET", path, [*query, ("limit", str(page)), *following])
            for item in listed["items"]:
                yield item
            if not (token := listed["metadata"].get("continue")):
                return
            following = [("continue", token)]

    async def watch(self, path: str, query: Query, version: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Type and object of each change after `version`, until the server ends the watch, after WATCH_SECONDS at most.

        Raises ApiRefused (status 410: `version` is too old), and Unavailable when the connection is lost.
        """
        query = [
            *query,
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_SECONDS)),
        ]
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        credentials = await self._login.credentials()
        try:
            async with self._request(credentials, _Sent("GET", path, query), limit) as response:
                await _check(response)
                async for line in _lines(response):
                    event = json.loads(line)
                    kind, item = event["type"], event["object"]
                    if kind == "ERROR":
                        raise ApiRefused(item.get("code", 500), item.get("reason", ""), item.get("message", ""))
                    yield kind, item
        except _Busy as error:
            if isinstance(error, _Unknown):
                await self._login.renew(credentials)
            raise self.unavailable(str(error)) from None
        except _BROKEN as error:
            raise self.unavailable(words(error)) from None

    async def lines(self, path: str, query: Query, *, most: int) -> AsyncGenerator[bytes, None]:
        """The lines of a text that is still being written, without their ends, until the server ends it. Of a line
        that is longer than `most` bytes, those. Raises ApiRefused, and Unavailable when the connection is lost or has
        carried nothing for LOG_SILENCE_SECONDS."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=LOG_SILENCE_SECONDS)
        credentials = await self._login.credentials()
        try:
            async with self._request(credentials, _Sent("GET", path, query), limit) as response:
                await _check(response)
                async for line in cut_lines(response.content.iter_any(), most):
                    yield line
        except _Busy as error:
            if isinstance(error, _Unknown):
                await self._login.renew(credentials)
            raise self.unavailable(str(error)) from None
        except _BROKEN as error:
            raise self.unavailable(words(error)) from None

    async def text(self, path: str, query: Query = (), *, most: int) -> str:
        """The last `most` bytes of a text, which is read as a whole. Raises ApiRefused and Unavailable."""
        ends = b""
        async with contextlib.aclosing(self.lines(path, query, most=most)) as lines:
            async for line in lines:
                ends = (ends + line + b"\n")[-most:]
        return ends.decode("utf-8", "replace")

    @contextlib.asynccontextmanager
    async def exec(self, namespace: str, pod: str, argv: Sequence[str], *, container: str) -> AsyncIterator[ExecStream]:
        """Run `argv` beside what runs in the pod's container, and speak with it; both its pipes are closed at the end.
        Raises ApiRefused, with the status only, and Unavailable."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        query = [("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
        query += [("command", argument) for argument in argv]
        async with self._websocket(path, query, PROTOCOL) as connected:
            yield ExecStream(connected, pod, self._part)

    @contextlib.asynccontextmanager
    async def _websocket(
        self, path: str, query: Query, protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
        """An upgraded connection that leaves pings to the caller."""
        self.requests += 1
        credentials = await self._login.credentials()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                connected = await self._session.ws_connect(
                    self._server.url + path,
                    params=list(query),
                    protocols=(protocol,),
                    headers=credentials.headers,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    autoping=False,
                    max_msg_size=0,
                    proxy=self._server.proxy,
                    server_hostname=self._server.tls_name,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401:
                await self._login.renew(credentials)
            raise ApiRefused(error.status, "", f"HTTP status {error.status}") from None
        except _BROKEN as error:
            raise self.unavailable(words(error)) from None
        try:
            yield connected
        finally:
            await connected.close()

    def unavailable(self, cause: str) -> Unavailable:
        return Unavailable(
            f"the Kubernetes API server at {self._server.url} does not answer as it should: {cause}", part=self._part
        )

    async def _once(self, credentials: Credentials, sent: _Sent) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with self._request(credentials, sent, limit) as response:
                await _check(response)
                answer: dict[str, Any] = json.loads(await response.read())
                return answer
        except ValueError:
            raise _Busy("its answer is not JSON") from None
        except _BROKEN as error:
            raise _Busy(words(error)) from None

    @contextlib.asynccontextmanager
    async def _request(
        self, credentials: Credentials, sent: _Sent, limit: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = list(credentials.headers)
        if sent.body is not None:
            headers.append(("Content-Type", sent.kind))
        self.requests += 1
        async with self._session.request(
            sent.method,
            self._server.url + sent.path,
            params=list(sent.query),
            data=None if sent.body is None else json.dumps(sent.body),
            headers=headers,
            timeout=limit,
            proxy=self._server.proxy,
            server_hostname=self._server.tls_name,
        ) as response:
            yield response


@contextlib.asynccontextmanager
async def open_api_server(kubeconfig: str = "", *, part: str = "kubernetes") -> AsyncIterator[ApiServer]:
    """With the credentials of the file `kubeconfig` where it is named, else of the pod that this runs in, else of
    KUBECONFIG or ~/.kube/config. `part` is what Unavailable names as the part that does not answer. Raises Unavailable
    when there are no credentials; asks the server nothing yet."""
    login = await open_login(kubeconfig, part=part)
    sockets: WeakSet[socket.socket] = WeakSet()

    def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        made = socket.socket(address[0], address[1], address[2])
        sockets.add(made)
        return made

    # Each open command has a connection of its own, so their number is what the worker's slots allow.
    connector = aiohttp.TCPConnector(limit=0, ssl=login.server.tls or True, socket_factory=new_socket)
    try:
        async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
            yield ApiServer(login, session, part)
    finally:
        await _end(sockets)


async def _end(sockets: Collection[socket.socket]) -> None:
    """Close what the session leaves open: a TLS connection that is closed early waits for its peer to agree, and the
    session does not wait for that."""
    for made in list(sockets):
        with contextlib.suppress(OSError):
            made.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while any(made.fileno() >= 0 for made in list(sockets)):  # noqa: ASYNC110 - nothing can wait for a socket
                await asyncio.sleep(0)


def words(error: BaseException) -> str:
    """What a network error says, in one line."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection was cut"
    return str(error) or type(error).__name__


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises ApiRefused, or _Busy where another try may help, unless the server has done what was asked."""
    if response.status < 300:
        return
    reason, message = _status(await response.read())
    message = message or f"HTTP status {response.status}"
    if response.status in _TRY_AGAIN:
        asked = retry_after(response.headers, datetime.now(UTC)) or 0.0
        raise _Busy(message, min(asked, LONGEST_ASKED_PAUSE_SECONDS))
    if response.status == 401:
        raise _Unknown
    raise ApiRefused(response.status, reason, message)


def _status(body: bytes) -> tuple[str, str]:
    """Reason and message of the server's answer; a proxy's answer has neither."""
    try:
        status: Mapping[str, Any] = json.loads(body)
        return str(status.get("reason") or ""), str(status.get("message") or "")
    except (ValueError, AttributeError):
        return "", ""


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: a pod's may be longer than any buffer."""
    begun: list[bytes] = []
    async for chunk in response.content.iter_any():
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*begun, line])
            begun = []
        begun.append(rest)


async def cut_lines(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """Whole lines, and the last one though it may be half; of each at most `most` bytes are kept."""
    begun, has_begun = bytearray(), False
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            begun += piece[: most - len(begun)]
            yield bytes(begun)
            begun.clear()
            has_begun = False
        begun += rest[: most - len(begun)]
        has_begun = has_begun or bool(rest)
    if has_begun:
        yield bytes(begun)
