"""The API's description (OpenAPI), built and encoded once: at the first request for it, in a thread.

To build it takes half a second of processor time, which would delay the start of every process, and would hold up all
other requests if a request did it on the event loop.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from app.kept_answer import KeptAnswer
from app.schemas.problems import Problem

TAGS = [
    {"name": "runs", "description": "Make runs, start and end them, and see what became of them."},
    {"name": "logs", "description": "The events of runs, in pages or as they happen."},
    {"name": "events", "description": "The event bus: events that users, hooks and the platform publish."},
    {"name": "agents", "description": "Agents that live: pools, messages, what each does."},
    {"name": "schedules", "description": "Messages to agents at times that their user has set."},
    {"name": "hooks", "description": "Addresses that others post to, signed; what they post becomes an event."},
    {"name": "services", "description": "What is always on beside the platform, and whether it answers."},
    {"name": "GPU machines", "description": "Machines with GPUs that the platform rents. For admins."},
    {"name": "deployments", "description": "Agents as images of their users, with revisions, rollouts and logs."},
    {"name": "files", "description": "The files of a run's workspace."},
    {"name": "decisions", "description": "What runs ask people, and the answers."},
    {"name": "tools", "description": "What steps can use."},
    {"name": "secrets", "description": "Values that steps use without anybody seeing them."},
    {"name": "artifacts", "description": "What agents keep from run to run."},
    {"name": "webhooks", "description": "What the platform sends, and what it signs that with."},
    {"name": "queue", "description": "How long the queue is, whose a token is, and what a user has stored."},
    {"name": "accounts", "description": "Budgets: who may spend how much."},
    {"name": "bulk actions", "description": "One action on all runs that a filter names, in the background."},
    {"name": "exports", "description": "A run as one archive."},
    {"name": "dead letters", "description": "Runs that failed for want of something around them. For admins."},
    {"name": "sessions", "description": "Signing in to the console: a cookie in place of a token."},
    {"name": "audit", "description": "Who did what, when, and how it ended."},
    {"name": "health", "description": "Whether the API works. No token is needed."},
]


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


def completed(described: dict[str, Any]) -> dict[str, Any]:
    """What FastAPI describes, with what it cannot know: summaries from docstrings, and the errors."""
    for operation in _operations(described):
        if operation.get("description"):
            operation["summary"] = summary_of(operation["description"])
    # The routes name it; FastAPI describes only models that it encodes itself.
    _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    schemas = {**described["components"]["schemas"], **problem["$defs"]}
    # FastAPI also lists the models of values that are described as another type.
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps([described, problem])))
    described["components"]["schemas"] = {name: schemas[name] for name in sorted(named)}
    return described


def summary_of(description: str) -> str:
    """Its first sentence, without the full stop."""
    first, _, _ = " ".join(description.split()).partition(". ")
    return first.removesuffix(".")


def _operations(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in described["paths"].values():
        yield from methods.values()
