"""Sends one webhook and returns how it went. It writes nothing, tries nothing twice and follows no redirect.

Of the answer only the status and `Retry-After` count. Nothing of its body is kept: it would let users read what answers
inside the platform's network, should an address get past the check.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from backplane import VERSION
from backplane.domain.retry import retry_after
from backplane.domain.webhooks import Delivery, check_url, sign
from backplane.errors import InvalidInput
from backplane.net.egress import AddressRefused, CheckedTransport, Resolve, resolve

READ_BYTES = 4096
READ_SECONDS = 1.0
"""How long an answer's body is read, so that a receiver can end a short answer in order."""


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """How an attempt went. `code` is the HTTP status; without one, `error` says why there is none. `final`: no further
    attempt can go better. `retry_after`: what the receiver asks for, in seconds."""

    code: int | None = None
    error: str = ""
    final: bool = False
    retry_after: float = 0.0

    @property
    def delivered(self) -> bool:
        return self.code is not None and 200 <= self.code < 300


class Sender:
    def __init__(self, client: httpx.AsyncClient, attempt_seconds: float) -> None:
        self._client = client
        self._attempt_seconds = attempt_seconds

    async def send(self, delivery: Delivery) -> ReceiverAnswer:
        try:
            url = check_url(delivery.url)
            async with asyncio.timeout(self._attempt_seconds):
                return await self._post(url, delivery)
        except InvalidInput as error:
            return ReceiverAnswer(error=error.message, final=True)
        except AddressRefused as error:
            return ReceiverAnswer(error=str(error), final=True)
        except TimeoutError:
            return ReceiverAnswer(error=f"no answer within {self._attempt_seconds:g} s")
        except httpx.ConnectError as error:
            return ReceiverAnswer(error=f"no connection: {str(error) or type(error).__name__}"[:200])
        except httpx.HTTPError as error:
            return ReceiverAnswer(error=f"the connection failed: {type(error).__name__}")

    async def _post(self, url: httpx.URL, delivery: Delivery) -> ReceiverAnswer:
        body, timestamp = delivery.body.encode(), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"agent-platform/{VERSION}",
            "Webhook-Id": delivery.id,
            "Webhook-Timestamp": str(timestamp),
            "Webhook-Signature": sign(delivery.secrets, delivery.id, timestamp, body),
        }
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(READ_SECONDS):
                    await _read_a_little(response)
        code = response.status_code
        asked = retry_after(response.headers, datetime.now(UTC)) or 0.0
        return ReceiverAnswer(code, f"it answered {code}", final=code == httpx.codes.GONE, retry_after=asked)


@asynccontextmanager
async def connect_sender(
    *, allow_private: bool, attempt_seconds: float, resolver: Resolve = resolve
) -> AsyncIterator[Sender]:
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    async with httpx.AsyncClient(
        transport=CheckedTransport(allow_private=allow_private, resolver=resolver),
        trust_env=False,
        follow_redirects=False,
        timeout=attempt_seconds,
        cookies=no_cookies,
    ) as client:
        yield Sender(client, attempt_seconds)


async def _read_a_little(response: httpx.Response) -> None:
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read >= READ_BYTES:
            return
