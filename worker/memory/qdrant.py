"""Memory in Qdrant: a collection for each agent, on a server or in a folder of this machine.

Both by the same client and the same calls, in threads, for its embedded mode has no other. That mode serves one opener
at a time and loads all that it opens, so each agent has a folder of its own, opened for one operation under a lock:
workers of one machine share it, and agents do not wait for one another. It keeps its points as pickles, so whoever can
write to the folder can run code in a worker: it is made for its owner alone.

What passes by itself (a server that is away or busy, a full disk, a lock) is Unavailable, and a step waits for it. All
else that goes wrong (a key that is not known, an answer that is not Qdrant's, a damaged folder) is PartRefuses and ends
the step at once: to ask again would give the same answer.

A collection belongs to the embedder that its first memory was embedded by; with another one it is refused, since its
vectors would be compared with ones that mean something else.
"""

import errno
import hashlib
import math
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from backplane.domain.sizes import shortened
from backplane.errors import Conflict, PartRefuses, PlatformError, TooLarge, Unavailable
from backplane.process.file_lock import LockBusy, file_lock
from backplane.process.tasks import in_thread
from worker.llm.embedding import Embedder
from worker.memory.base import AgentMemory, Memory

T = TypeVar("T")

IDS = uuid.UUID("5f0c3c52-6f1e-5d3b-9d0b-3a5cf6a1c9d4")
"""The namespace of memories' ids, which are made from their texts."""

_PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""The statuses of a server that is busy, has a fault of its own, or has another request for the same collection."""

_LASTING_ERRNOS = frozenset({errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EROFS})
"""The errors of a folder that last until somebody has mended it."""

Action = Callable[[QdrantClient], T]


class QdrantAccess(ABC):
    """Where collections are."""

    @abstractmethod
    async def work(self, collection: str, action: Action[T]) -> T:
        """The result of `action`, in a thread, with a client of this place. Raises Unavailable and PartRefuses."""

    @abstractmethod
    async def close(self) -> None: ...


class QdrantFolder(QdrantAccess):
    def __init__(self, folder: Path, *, wait_seconds: float) -> None:
        self._folder = folder
        self._wait_seconds = wait_seconds

    async def work(self, collection: str, action: Action[T]) -> T:
        place = self._folder / collection
        try:
            await in_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            async with file_lock(self._folder / f"{collection}.lock", self._wait_seconds):
                return await in_thread(_in_folder, place, action)
        except LockBusy:
            message = "others use this agent's memory all the time; set QDRANT_URL to share it"
            raise Unavailable(message, part="memory") from None
        except OSError as error:
            raise _of_folder(error, f"is MEMORY_DIR writable, and {collection} in it whole?") from error

    async def close(self) -> None:
        pass


class QdrantServer(QdrantAccess):
    def __init__(self, url: str, api_key: str, *, timeout_seconds: float) -> None:
        self._url = url
        self._api_key = api_key
        self._timeout_seconds = math.ceil(timeout_seconds)
        self._client: QdrantClient | None = None

    async def work(self, collection: str, action: Action[T]) -> T:
        return await in_thread(self._work, action)

    def _work(self, action: Action[T]) -> T:
        try:
            if self._client is None:
                self._client = QdrantClient(
                    url=self._url,
                    api_key=self._api_key or None,
                    timeout=self._timeout_seconds,
                    check_compatibility=False,
                )
            return action(self._client)
        except PlatformError:
            raise
        except Exception as error:
            raise _of_server(error, "is QDRANT_URL right, the server up, and QDRANT_API_KEY its key?") from error

    async def close(self) -> None:
        if self._client is not None:
            await in_thread(self._client.close)


class QdrantMemory(AgentMemory):
    def __init__(self, place: QdrantAccess, embedder: Embedder, *, max_items: int, max_chars: int) -> None:
        self._place = place
        self._embedder = embedder
        self._max_items = max_items
        self._max_chars = max_chars

    async def remember(self, user_id: str, agent: str, text: str, tags: Sequence[str], *, run_id: str) -> str:
        self._ensure_length(text)
        [vector] = await self._embedder.embed([text], user_id=user_id, run_id=run_id)
        collection, id = _collection(user_id, agent), str(uuid.uuid5(IDS, text))
        payload = {"text": text, "tags": list(tags), "at": datetime.now(UTC).isoformat(), "run_id": run_id}

        def put(client: QdrantClient) -> None:
            if not self._is_there(client, collection, vector):
                self._make(client, collection, vector)
            is_new = not client.retrieve(collection, [id], with_payload=False)
            if is_new and client.count(collection, exact=True).count >= self._max_items:
                raise TooLarge(f"The agent keeps {self._max_items} memories (MEMORY_MAX_ITEMS): forget some first.")
            client.upsert(collection, [models.PointStruct(id=id, vector=vector, payload=payload)], wait=True)

        await self._place.work(collection, put)
        return id

    async def recall(
        self, user_id: str, agent: str, query: str, tags: Sequence[str], limit: int, *, run_id: str
    ) -> list[Memory]:
        self._ensure_length(query)
        [vector] = await self._embedder.embed([query], user_id=user_id, run_id=run_id)
        collection = _collection(user_id, agent)
        all_tags = models.Filter(
            must=[models.FieldCondition(key="tags", match=models.MatchValue(value=tag)) for tag in tags]
        )

        def find(client: QdrantClient) -> list[Memory]:
            if not self._is_there(client, collection, vector):
                return []
            found = client.query_points(collection, query=vector, query_filter=all_tags, limit=limit)
            return [_memory(point) for point in found.points]

        return await self._place.work(collection, find)

    async def forget(self, user_id: str, agent: str, id: str) -> bool:
        collection = _collection(user_id, agent)

        def remove(client: QdrantClient) -> bool:
            if not client.collection_exists(collection) or not client.retrieve(collection, [id], with_payload=False):
                return False
            client.delete(collection, [id], wait=True)
            return True

        return await self._place.work(collection, remove)

    async def close(self) -> None:
        await self._place.close()

    def _ensure_length(self, text: str) -> None:
        if len(text) > self._max_chars:
            raise TooLarge(
                f"The text has {len(text)} characters; {self._max_chars} are possible: keep what is "
                "long in a file or an artifact, and remember where it is."
            )

    def _is_there(self, client: QdrantClient, collection: str, vector: Sequence[float]) -> bool:
        """Whether there is a collection, which must be of this embedder's vectors."""
        if not client.collection_exists(collection):
            return False
        config = client.get_collection(collection).config
        made_by = (config.metadata or {}).get("embedder")
        size = config.params.vectors.size if isinstance(config.params.vectors, models.VectorParams) else 0
        if (made_by, size) != (self._embedder.name, len(vector)):
            raise Conflict(
                f"This agent's memory was embedded by {made_by} ({size} numbers a text), and EMBEDDING_MODEL is "
                f"{self._embedder.name} ({len(vector)}) now: set it back, or let an administrator remove the "
                f"collection {collection} with all that the agent remembers."
            )
        return True

    def _make(self, client: QdrantClient, collection: str, vector: Sequence[float]) -> None:
        try:
            client.create_collection(
                collection,
                vectors_config=models.VectorParams(size=len(vector), distance=models.Distance.COSINE),
                metadata={"embedder": self._embedder.name},
            )
        except UnexpectedResponse:
            if not self._is_there(client, collection, vector):  # another worker's, made at the same moment
                raise


def _in_folder(place: Path, action: Action[T]) -> T:
    try:
        client = QdrantClient(path=str(place))
        try:
            return action(client)
        finally:
            client.close()
    except PlatformError:
        raise
    except Exception as error:
        raise _of_folder(error, f"is MEMORY_DIR writable, and {place.name} in it whole?") from error


def _collection(user_id: str, agent: str) -> str:
    digest = hashlib.sha256(f"{user_id}\0{agent}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"agent-{digest[:40]}"


def _memory(point: models.ScoredPoint) -> Memory:
    payload = point.payload or {}
    tags = tuple(payload.get("tags", ()))
    return Memory(str(point.id), payload["text"], tags, payload.get("at", ""), payload.get("run_id", ""), point.score)


def _of_server(error: Exception, look: str) -> Unavailable | PartRefuses:
    match error:
        case UnexpectedResponse():
            passes = error.status_code in _PASSING_STATUSES
        case ResponseHandlingException():
            is_ours = isinstance(error.source, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
            passes = isinstance(error.source, httpx.TransportError) and not is_ours
        case _:
            passes = isinstance(error, ResourceExhaustedResponse | OSError | MemoryError)
    return _failure(error, look, passes=passes)


def _of_folder(error: Exception, look: str) -> Unavailable | PartRefuses:
    match error:
        case OSError():
            passes = error.errno not in _LASTING_ERRNOS
        case RuntimeError():  # of the client: another one has the folder open
            passes = "already accessed" in str(error)
        case _:
            passes = isinstance(error, sqlite3.OperationalError | MemoryError)
    return _failure(error, look, passes=passes)


def _failure(error: Exception, look: str, *, passes: bool) -> Unavailable | PartRefuses:
    # Of what a server answered, the beginning is enough.
    message = f"the memory cannot be used ({type(error).__name__}: {shortened(str(error), 200)}): {look}"
    return Unavailable(message, part="memory") if passes else PartRefuses(message)
