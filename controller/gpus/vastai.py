"""Vast.ai by its HTTP API, as published: offers at `/api/v0/bundles/`, a machine is made of an offer at
`/api/v0/asks/{offer}/`, and the list, of 25 a page, is at `/api/v1/instances/`.

The key goes in a header alone: never into a URL, a log line or an error. The API answers 429 in plain text and without
`Retry-After`, and its errors lack fields at times, so nothing here needs them.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

import httpx

from backplane.domain.budgets import MICRO
from backplane.domain.gpus import MachineSpec, Offer
from backplane.domain.sizes import MIB, shortened
from backplane.errors import Unavailable
from backplane.net.hang_ups import hang_ups_as
from controller.gpus.onstart import ONSTART, PROXY_PORT, machine_variables
from controller.gpus.provider import CreateRefused, GpuProvider, Instance, InstanceStatus, NewInstance

NAME = "vastai"
CALL_SECONDS = 30.0
ANSWER_MAX_BYTES = 8 * MIB
"""A page of 25 machines has some 100 KiB."""
PAGE = 25
PAGES_MAX = 400
OFFERS = 20
BUSY_SECONDS = 30
"""How long the provider is left alone after a 429, which does not say."""
WORDS_CHARS = 200

_STATUS: Mapping[str, InstanceStatus] = {
    "running": "running",
    "created": "starting",
    "loading": "starting",
    "rebooting": "starting",
    "frozen": "starting",
    "stopped": "stopped",
    "exited": "stopped",
}


class VastAi(GpuProvider):
    name = NAME

    def __init__(self, url: str, key: str) -> None:
        """`url`: of the console, without a path."""
        self._url = url.rstrip("/")
        self._key = key
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"},
            timeout=CALL_SECONDS,
            follow_redirects=False,
            trust_env=False,
            # Calls are seconds apart: a kept connection would be closed under the next one.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def offers(self, spec: MachineSpec, most_micro_usd: int) -> Sequence[Offer]:
        wanted = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "rented": {"eq": False},
            "gpu_name": {"eq": spec.gpu_type.replace("_", " ")},
            "num_gpus": {"eq": spec.gpu_count},
            "disk_space": {"gte": spec.disk_gb},
            "dph_total": {"lte": most_micro_usd / MICRO},
            "order": [["dph_total", "asc"]],
            "type": "on-demand",
            "allocated_storage": spec.disk_gb,
            "limit": OFFERS,
        }
        answer = await self._asked("POST", "/api/v0/bundles/", json=wanted)
        found = [_offer(one) for one in _objects(answer.get("offers"))]
        fitting = [one for one in found if one is not None and one.micro_usd_per_hour <= most_micro_usd]
        return sorted(fitting, key=lambda one: one.micro_usd_per_hour)

    async def create(self, offer: Offer, new: NewInstance) -> str:
        variables = machine_variables(new.spec, new.token, new.certificate, new.key)
        body = {
            "image": new.spec.image,
            "disk": new.spec.disk_gb,
            "label": new.label,
            "env": {f"-p {PROXY_PORT}:{PROXY_PORT}": "1", **variables},
            # The image's own entry point would open its model server to the world; `ssh` runs `onstart` in its place.
            "runtype": "ssh",
            "onstart": ONSTART,
            "cancel_unavail": True,
        }
        response = await self._call("PUT", f"/api/v0/asks/{offer.id}/", json=body)
        if response.is_client_error or _is_refusal(response):
            raise CreateRefused(self._words(response))
        answer = self._object(response)
        contract = answer.get("new_contract")
        if not isinstance(contract, int | str) or isinstance(contract, bool) or not str(contract).isalnum():
            raise self._unavailable(f"it did not say what it made: {self._words(response)}")
        return str(contract)

    async def instances(self, kept: Mapping[str, str]) -> Sequence[Instance]:
        found: dict[str, Instance] = {}
        total, token, tokens = 0, "", set[str]()
        order = json.dumps([{"col": "id", "dir": "asc"}])
        for _ in range(PAGES_MAX):
            query = {"select_filters": "{}", "order_by": order, "limit": str(PAGE)}
            if token:
                query["after_token"] = token
            page = await self._asked("GET", "/api/v1/instances/", params=query)
            if not isinstance(page.get("instances"), list):
                raise self._unavailable("its list has no instances")
            for row in _objects(page["instances"]):
                instance = _instance(row)
                if instance is None:
                    raise self._unavailable("its list has a machine without an id")
                found[instance.contract] = instance
            reported = page.get("total_instances") or 0
            if not isinstance(reported, int):
                raise self._unavailable("its list does not say how many machines there are")
            total = max(total, reported)
            token = str(page.get("next_token") or "")
            if not token:
                break
            if token in tokens:
                raise self._unavailable("its list has no end")
            tokens.add(token)
        else:
            raise self._unavailable("its list has no end")
        if len(found) < total:
            raise self._unavailable(f"its list has {len(found)} of {total} machines")
        return list(found.values())

    async def destroy(self, contract: str) -> None:
        response = await self._call("DELETE", f"/api/v0/instances/{contract}/")
        if response.status_code not in (404, 410) and (response.is_client_error or _is_refusal(response)):
            raise self._unavailable(f"it did not destroy machine {contract}: {self._words(response)}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _asked(self, method: str, path: str, **request: Any) -> Mapping[str, Any]:
        response = await self._call(method, path, **request)
        if response.is_client_error or _is_refusal(response):
            raise self._unavailable(f"it refused {method} {path}: {self._words(response)}")
        return self._object(response)

    async def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, with its body. Raises Unavailable where there is none that says anything about the request."""
        try:
            async with asyncio.timeout(CALL_SECONDS), self._streamed(method, path, **request) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > ANSWER_MAX_BYTES:
                        raise self._unavailable(f"its answer has more than {ANSWER_MAX_BYTES} bytes")
                whole = httpx.Response(response.status_code, content=bytes(body))
        except (httpx.HTTPError, TimeoutError) as error:
            # The error's own words may hold the URL with all of its query.
            raise self._unavailable(f"it does not answer ({type(error).__name__})") from None
        if whole.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise self._unavailable("it was asked too often", retry_after=BUSY_SECONDS)
        if whole.status_code in (401, 403):
            raise self._unavailable("it refuses VASTAI_API_KEY", retry_after=60, refuses=True)
        if whole.is_server_error or whole.is_redirect:
            raise self._unavailable(f"it answered {whole.status_code}: {self._words(whole)}")
        return whole

    @asynccontextmanager
    async def _streamed(self, method: str, path: str, **request: Any) -> AsyncIterator[httpx.Response]:
        with hang_ups_as(httpx.ConnectError):
            async with self._client.stream(method, f"{self._url}{path}", **request) as response:
                yield response

    def _object(self, response: httpx.Response) -> Mapping[str, Any]:
        try:
            value = json.loads(response.content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._unavailable(f"it answered no JSON object: {self._words(response)}")
        return value

    def _words(self, response: httpx.Response) -> str:
        """What it says, in one short line without the key."""
        try:
            value = json.loads(response.content)
        except (ValueError, RecursionError):
            value = None
        text = response.text
        if isinstance(value, dict):
            text = str(value.get("msg") or value.get("error") or f"status {response.status_code}")
        line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
        return shortened(line.replace(self._key, "[key]"), WORDS_CHARS)

    def _unavailable(self, words: str, *, retry_after: int = 10, refuses: bool = False) -> Unavailable:
        return Unavailable(f"Vast.ai: {words}", part=NAME, retry_after=retry_after, refuses=refuses)


def _is_refusal(response: httpx.Response) -> bool:
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("success") is False


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _micro(value: Any) -> int | None:
    """Dollars as the wire has them, in millionths, rounded up."""
    try:
        return int((Decimal(str(value)) * MICRO).to_integral_value(ROUND_CEILING))
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _number(value: Any) -> float | None:
    """JSON on this wire may have NaN, and numbers that no float can be."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int:
    return int(_number(value) or 0)


def _offer(row: Mapping[str, Any]) -> Offer | None:
    price = _micro(row.get("dph_total"))
    if price is None or price < 0 or not isinstance(row.get("id"), int):
        return None
    ram, reliability = _number(row.get("gpu_ram")), _number(row.get("reliability2"))
    return Offer(
        id=str(row["id"]),
        gpu_type=str(row.get("gpu_name") or "").replace(" ", "_"),
        gpu_count=_count(row.get("num_gpus")) or 1,
        micro_usd_per_hour=price,
        gpu_ram_gb=None if ram is None else round(ram / 1024, 1),
        reliability=reliability,
    )


def _instance(row: Mapping[str, Any]) -> Instance | None:
    if not isinstance(row.get("id"), int | str):
        return None
    status = row.get("actual_status")
    return Instance(
        contract=str(row["id"]),
        label=str(row.get("label") or ""),
        status="starting" if status is None else _STATUS.get(str(status), "unknown"),
        micro_usd_per_hour=_micro(row.get("dph_total")),
        url=_url(row),
    )


def _url(row: Mapping[str, Any]) -> str | None:
    host, ports = str(row.get("public_ipaddr") or "").strip(), row.get("ports")
    mapped = _objects(ports.get(f"{PROXY_PORT}/tcp")) if isinstance(ports, dict) else []
    port = str(mapped[0].get("HostPort") or "") if mapped else ""
    if not host or not port.isdigit():
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
