"""The API's description (OpenAPI), built and encoded once: at the first request for it, in a thread.

To build it takes half a second of processor time, which would delay the start of every process, and would hold up all
other requests if a request did it on the event loop.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.kept_answer import KeptAnswer


@dataclass(frozen=True, slots=True)
class Description:
    """As it is sent. `etag`: with its quotes. `methods`: of each path, in capitals."""

    body: bytes
    etag: str
    methods: Mapping[str, frozenset[str]]


def kept_description(describe: Callable[[], dict[str, Any]]) -> KeptAnswer[Description]:
    """What `describe` gives, for as long as the process runs."""

    def built() -> Description:
        described = describe()
        body = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
        methods = {path: frozenset(map(str.upper, of)) for path, of in described["paths"].items()}
        return Description(body, f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"', methods)

    return KeptAnswer(lambda: asyncio.to_thread(built), seconds=float("inf"))
