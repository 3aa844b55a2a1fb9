"""Requests to a Kubernetes API server: with whose credentials, tried how often, and what a failure means.

The client library knows where credentials are and how they are renewed; the requests are plain HTTP with JSON, because
its models would cost more than all the rest of a request and know less than a newer server sends. TLS is checked by the
certificate that comes with the credentials. No message or traceback made here has a header in it, so none has a token.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, SERVICE_TOKEN_FILENAME

from backplane.domain.retry import retry_after
from backplane.errors import Unavailable
from backplane.process.retrying import pauses

TRIES = 4
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
CLOSE_SECONDS = 1.0
WATCH_SECONDS = 30
"""A watch is ended by the server and begun anew so often: by this a connection that died in silence is found."""
WATCH_SILENCE_SECONDS = WATCH_SECONDS + 5.0
LONGEST_ASKED_PAUSE_SECONDS = 5.0

GET_CREDENTIALS = (
    "run the worker in the cluster with a service account, or let KUBECONFIG name a file with credentials "
    "(else ~/.kube/config), or set SANDBOX=local"
)
_BROKEN = (aiohttp.ClientError, OSError, EOFError)
_TRY_AGAIN = (429, 500, 502, 503, 504)


class ApiRefused(Exception):
    """The server's own "no" to a request. `message` is the server's; it is for `worker.sandbox.kubernetes.jobs` to
    judge."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class _Busy(Exception):
    def __init__(self, words: str, pause: float = 0.0) -> None:
        super().__init__(words)
        self.pause = pause


class _Unknown(_Busy):
    def __init__(self) -> None:
        super().__init__("it does not know the worker's credentials; they may have run out, or been revoked")


Query = Sequence[tuple[str, str]]


class ApiServer:
    """Made by `open_api_server`. Any number of requests may be on their way at once."""

    def __init__(self, configuration: Configuration, kubeconfig: str, session: aiohttp.ClientSession) -> None:
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._session = session
        self.requests = 0
        """Requests that were sent so far, each try and each watch counted: what a benchmark looks at."""

    async def call(self, method: str, path: str, query: Query = (), body: Any = None) -> dict[str, Any]:
        """The answer's JSON. What may pass is tried a few times, so the request must be safe to repeat. Raises
        ApiRefused, and Unavailable where the server cannot be reached, is overloaded or broken."""
        for number, pause in enumerate(pauses(), start=1):
            try:
                return await self._once(method, path, query, body)
            except _Busy as error:
                if isinstance(error, _Unknown):
                    await self._renew()
                if number == TRIES:
                    raise self.unavailable(str(error)) from None
                await asyncio.sleep(max(pause, error.pause))
        raise AssertionError("pauses never end")

    async def watch(self, path: str, query: Query, version: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Type and object of each change after `version`, until the server ends the watch, which it does often.

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
        try:
            async with self._request("GET", path, query, None, limit) as response:
                await _check(response)
                async for line in _lines(response):
                    event = json.loads(line)
                    kind, item = event["type"], event["object"]
                    if kind == "ERROR":
                        raise ApiRefused(item.get("code", 500), item.get("reason", ""), item.get("message", ""))
                    yield kind, item
        except _Busy as error:
            if isinstance(error, _Unknown):
                await self._renew()
            raise self.unavailable(str(error)) from None
        except _BROKEN as error:
            raise self.unavailable(words(error)) from None

    @contextlib.asynccontextmanager
    async def websocket(
        self, path: str, query: Query, protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
        """An upgraded connection that leaves pings to the caller. Raises ApiRefused, with the status only, and
        Unavailable."""
        self.requests += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                socket = await self._session.ws_connect(
                    self._url(path),
                    params=list(query),
                    protocols=(protocol,),
                    headers=await self._headers(),
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    autoping=False,
                    max_msg_size=0,
                    proxy=self._configuration.proxy,
                    server_hostname=self._configuration.tls_server_name,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401:
                await self._renew()
            raise ApiRefused(error.status, "", f"HTTP status {error.status}") from None
        except _BROKEN as error:
            raise self.unavailable(words(error)) from None
        try:
            yield socket
        finally:
            await socket.close()

    def unavailable(self, cause: str) -> Unavailable:
        return Unavailable(
            f"the Kubernetes API server at {self._configuration.host} does not answer as it should: {cause}",
            part="sandbox",
        )

    async def _once(self, method: str, path: str, query: Query, body: Any) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with self._request(method, path, query, body, limit) as response:
                await _check(response)
                answer: dict[str, Any] = json.loads(await response.read())
                return answer
        except ValueError:
            raise _Busy("its answer is not JSON") from None
        except _BROKEN as error:
            raise _Busy(words(error)) from None

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, query: Query, body: Any, limit: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = await self._headers()
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self.requests += 1
        async with self._session.request(
            method,
            self._url(path),
            params=list(query),
            data=None if body is None else json.dumps(body),
            headers=headers,
            timeout=limit,
            proxy=self._configuration.proxy,
            server_hostname=self._configuration.tls_server_name,
        ) as response:
            yield response

    async def _renew(self) -> None:
        """The token may have been replaced where it came from. In a pod the library looks there by itself."""
        self._configuration.api_key = (await _load(self._kubeconfig)).api_key

    async def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
        except (ConfigException, OSError) as error:
            raise self.unavailable(f"the worker's own token cannot be read: {error}") from None
        if token:
            headers["Authorization"] = token
        return headers

    def _url(self, path: str) -> str:
        return str(self._configuration.host).rstrip("/") + path


@contextlib.asynccontextmanager
async def open_api_server(kubeconfig: str = "") -> AsyncIterator[ApiServer]:
    """With the credentials of the file `kubeconfig` where it is named, else of the pod that this runs in, else of
    KUBECONFIG or ~/.kube/config. Raises Unavailable when there are none; asks the server nothing yet."""
    configuration = await _load(kubeconfig)
    try:
        ssl_context = RESTClientObject(configuration).ssl_context
    except (OSError, ValueError) as error:
        raise Unavailable(f"the cluster's certificates cannot be used: {error}", part="sandbox") from None
    sockets: WeakSet[socket.socket] = WeakSet()

    def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        made = socket.socket(address[0], address[1], address[2])
        sockets.add(made)
        return made

    # Each open command holds a connection of its own, so their number is what the worker's slots allow.
    connector = aiohttp.TCPConnector(limit=0, ssl=ssl_context, socket_factory=new_socket)
    try:
        async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
            yield ApiServer(configuration, kubeconfig, session)
    finally:
        await _end(sockets)


async def _end(sockets: Collection[socket.socket]) -> None:
    """A TLS connection that was given up in its middle waits for its peer to agree, and the session does not wait for
    it. A process that ends would leave it open."""
    for made in list(sockets):
        with contextlib.suppress(OSError):
            made.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while any(made.fileno() >= 0 for made in list(sockets)):  # noqa: ASYNC110 - a socket tells nobody
                await asyncio.sleep(0)


async def _load(kubeconfig: str) -> Configuration:
    configuration = Configuration()
    try:
        file = kubeconfig or _own_file()
        if not file:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        elif not _exists(file):
            raise ConfigException(f"there is no file {file}")
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=file, client_configuration=configuration, persist_config=False
            )
    except (ConfigException, OSError, ValueError, KeyError) as error:
        raise Unavailable(
            f"there are no credentials for a Kubernetes cluster ({words(error)}): {GET_CREDENTIALS}", part="sandbox"
        ) from None
    return configuration


def _own_file() -> str:
    """The file with this user's credentials; none in a pod, which has its own."""
    if os.environ.get(SERVICE_HOST_ENV_NAME) and os.access(SERVICE_TOKEN_FILENAME, os.R_OK):
        return ""
    return os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")


def _exists(files: str) -> bool:
    return any(os.path.exists(file) for file in files.split(os.pathsep))


def words(error: BaseException) -> str:
    """What a network error is about, for people."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection was cut"
    return str(error) or type(error).__name__


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises for an answer that is none."""
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
