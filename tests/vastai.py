"""A server that speaks Vast.ai's wire as far as this platform uses it, with what goes wrong there.

It has accounts of machines in memory, pages of 25, GPU names with a space, errors with fields missing, and a 429 in
plain text. It notes each request, so that a test can look for a key where none may be.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.answering import Answer, Heard, answering

KEY = "a-key-that-nobody-else-has"
PAGE = 25


@dataclass(slots=True)
class FakeVastAi:
    """`busy`: so many of the next requests are answered with 429. `failing`: with a 500. `create_fails`: "before" or
    "after" the machine is made. `destroys_lie`: a destroy is answered and not done. `short_by`: how many machines the
    list leaves out, while it counts them. `odd`: stands where numbers of offers and lists are."""

    url: str = ""
    instances: dict[int, dict[str, Any]] = field(default_factory=dict)
    requests: list[Heard] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    busy: int = 0
    failing: int = 0
    create_fails: str = ""
    destroys_lie: bool = False
    short_by: int = 0
    odd: Any = None
    number: int = 1000

    def add(self, label: str, status: str | None = "running", price: float = 0.4) -> int:
        self.number += 1
        self.instances[self.number] = {
            "id": self.number,
            "label": label,
            "actual_status": status,
            "intended_status": "running",
            "gpu_name": "RTX 4090",
            "dph_total": price,
            "public_ipaddr": "192.0.2.7 \n",
            "ports": {"11435/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41234"}]},
        }
        return self.number

    def answer(self, request: Heard) -> Answer:
        self.requests.append(request)
        if self.busy:
            self.busy -= 1
            return Answer(429, b"Too Many Requests", content_type="text/plain")
        if self.failing:
            self.failing -= 1
            return Answer(500, f"<html>{KEY} went wrong</html>".encode(), content_type="text/html")
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _json({"success": False, "error": "auth_error", "msg": f"bad key {KEY}"}, 401)
        split = urlsplit(request.target)
        body: Any = json.loads(request.body) if request.body else None
        self.bodies.append(body)
        match request.method, split.path.strip("/").split("/"):
            case "POST", ["api", "v0", "bundles"]:
                return self._offers(body)
            case "PUT", ["api", "v0", "asks", offer]:
                return self._create(offer, body)
            case "GET", ["api", "v1", "instances"]:
                return self._page(parse_qs(split.query))
            case "DELETE", ["api", "v0", "instances", contract]:
                return self._destroy(int(contract))
        return _json({"success": False}, 404)

    def _offers(self, wanted: dict[str, Any]) -> Answer:
        name = wanted["gpu_name"]["eq"]
        if name != "RTX 4090":
            return _json({"offers": []})
        offers = [
            {
                "id": 7,
                "gpu_name": name,
                "num_gpus": 1,
                "gpu_ram": 24564,
                "dph_total": 0.4213333333,
                "reliability2": 0.99,
            },
            {"id": 8, "gpu_name": name, "num_gpus": 1, "gpu_ram": 24564, "dph_total": 0.35},
            {"id": 9, "gpu_name": name, "num_gpus": 1, "dph_total": 9.9},
            {"id": "odd", "gpu_name": name, "dph_total": None},
        ]
        if self.odd is not None:
            offers = [
                {**offer, "num_gpus": self.odd, "gpu_ram": self.odd, "reliability2": self.odd} for offer in offers
            ]
        return _json({"offers": offers})

    def _create(self, offer: str, body: dict[str, Any]) -> Answer:
        if offer not in ("7", "8"):
            return _json({"success": False, "error": "invalid_args", "msg": f"no such ask {KEY}"}, 400)
        if self.create_fails == "before":
            return _json({"success": False, "error": "no_longer_available"}, 410)
        number = self.add(body["label"], None)
        if self.create_fails == "after":
            return Answer(502, b"Bad Gateway", content_type="text/plain")
        if self.create_fails == "refused after":
            return _json({"success": False})
        return _json({"success": True, "new_contract": number})

    def _page(self, query: dict[str, list[str]]) -> Answer:
        limit, after = int(query["limit"][0]), int(query.get("after_token", ["0"])[0])
        if limit > PAGE:
            return _json({"success": False, "msg": "limit"}, 400)
        there = sorted(number for number in self.instances if number > after)
        shown = there[: limit - self.short_by]
        token = str(there[limit - 1]) if len(there) > limit else None
        rows = [self.instances[number] for number in shown]
        total = len(self.instances) if self.odd is None else self.odd
        return _json({"instances": rows, "next_token": token, "total_instances": total})

    def _destroy(self, contract: int) -> Answer:
        if contract not in self.instances:
            return _json({"success": False, "error": "no_such_instance"}, 404)
        if not self.destroys_lie:
            del self.instances[contract]
        return _json({"success": True})


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


@asynccontextmanager
async def fake_vastai() -> AsyncIterator[FakeVastAi]:
    fake = FakeVastAi()
    async with answering(fake.answer) as url:
        fake.url = url
        yield fake
