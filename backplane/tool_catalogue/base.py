"""The tools that workers have, as they publish them for the API, which checks plans by them and shows them.

Workers may differ (plug-ins, settings, releases), and each publishes all that it has. Workers with the same tools
publish the same set, which has one digest.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 1024 * 1024
"""The most bytes of one set. A larger one is published as a set of which nothing is known."""


@dataclass(frozen=True, slots=True)
class PublishedTool:
    """`parameters` is the JSON schema of the arguments, `risk` is low, medium or high, `package` the plug-in's (empty:
    the platform's own). `programs`: the arguments that are carried out or obeyed, where no reference may stand;
    `paths`: those that are paths of files in the workspace; `folders`: of folders."""

    name: str
    description: str
    parameters: dict[str, Any]
    risk: str
    repeatable: bool
    package: str
    programs: tuple[str, ...]
    paths: tuple[str, ...]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedHandler:
    """`input` and `result` are JSON schemas; `result` is None where it is not known. `package`: the installed package
    or the file that it is from."""

    name: str
    description: str
    input: dict[str, Any]
    result: dict[str, Any] | None
    package: str


@dataclass(frozen=True, slots=True)
class ToolSet:
    """Of a worker. `tools` is None where they are too many to publish. `has_model`: it can ask a model. `roles`: names
    of those that it has for agents that live; None: not known, as of a worker of an older release."""

    tools: tuple[PublishedTool, ...] | None
    has_model: bool
    handlers: tuple[PublishedHandler, ...] = ()
    roles: tuple[str, ...] | None = None

    def encoded(self) -> tuple[str, str]:
        """Its digest and its JSON."""
        document = json.dumps(self, default=_fields, separators=(",", ":"))
        if len(document) > MAX_BYTES:
            return ToolSet(None, self.has_model).encoded()
        return hashlib.sha256(document.encode()).hexdigest()[:32], document


def _fields(one: ToolSet | PublishedTool | PublishedHandler) -> dict[str, Any]:
    # Not `asdict`, which copies each schema first: that takes ten times as long as the rest.
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def decoded(document: str) -> ToolSet:
    """Raises ValueError for what is none, such as one of another release."""
    try:
        found = json.loads(document)
        tools = found["tools"]
        handlers = tuple(PublishedHandler(**_known(PublishedHandler, one)) for one in found.get("handlers", ()))
        roles = None if found.get("roles") is None else tuple(map(str, found["roles"]))
        return ToolSet(None if tools is None else tuple(map(_tool, tools)), bool(found["has_model"]), handlers, roles)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a set of tools: {error}") from None


def _known(kind: type[PublishedTool] | type[PublishedHandler], found: dict[str, Any]) -> dict[str, Any]:
    """Without fields of a newer release."""
    return {name: found[name] for name in kind.__dataclass_fields__ if name in found}


def _tool(found: dict[str, Any]) -> PublishedTool:
    named = _known(PublishedTool, found)
    tuples = {name: tuple(found.get(name, ())) for name in ("programs", "paths", "folders")}
    return PublishedTool(**{**named, **tuples})


class ToolCatalogue(ABC):
    @abstractmethod
    async def publish(self, tools: ToolSet, *, worker_id: str, seconds: float) -> None:
        """For so long; again before that is over. Raises Unavailable."""

    @abstractmethod
    async def published(self) -> Sequence[tuple[str, str]]:
        """Digest and JSON of each set that a worker has published and that is not over, the newest first. Raises
        Unavailable."""

    @abstractmethod
    async def publishers(self) -> frozenset[str]:
        """Ids of the workers that have published, as far as that is not over. A worker of an older release does not
        say which one it is, or publishes nothing. Raises Unavailable."""
