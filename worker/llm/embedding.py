"""Texts as vectors, for what agents remember: near vectors are texts that speak of the same.

Two ways behind one port: a model on a server (EMBEDDING_MODEL), or, where none is set, one that is built in and needs
nothing. What was embedded by one is of no use to the other: whoever keeps vectors keeps the embedder's `name` with
them.

An embedding is no call of a run's: it is not recorded, and its tokens are in no budget, because its price is hardly any
and a memory is looked up more often than a model is asked. It waits for its slot at the server like every call.
"""

import asyncio
import math
import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence

from backplane.domain.models import ModelName
from backplane.settings import Settings
from worker.llm.gateway import ModelGateway

HASHED_DIMENSIONS = 512
BATCH = 64
"""Texts in one request to a server."""

_WORD = re.compile(r"\w+")
_GRAM_SIZES = (3, 4, 5)
_GRAM_WEIGHT = 0.4
"""The weight of a piece of a word, where the word itself has 1."""


class Embedder(ABC):
    """`name` is the same in every process that makes the same vectors."""

    name: str

    @abstractmethod
    async def embed(self, texts: Sequence[str], *, user_id: str = "", run_id: str = "") -> list[list[float]]:
        """One vector of length 1 for each text. `user_id` and `run_id` say whose turn it is at a server.

        Raises ModelError where a server gives none."""

    @abstractmethod
    async def dimensions(self) -> int:
        """How long a vector is. Raises ModelError: a server is asked, once."""


class HashedEmbedder(Embedder):
    """Words and pieces of words, each counted in a place of the vector that its hash names.

    It is lexical, not semantic: texts are near when they share words or parts of words. It does not know that a dog is
    an animal. It is deterministic over processes and machines, in any language that is written in letters."""

    name = "builtin/hashed-512"

    async def embed(self, texts: Sequence[str], *, user_id: str = "", run_id: str = "") -> list[list[float]]:
        return await asyncio.to_thread(lambda: [hashed(text) for text in texts])

    async def dimensions(self) -> int:
        return HASHED_DIMENSIONS


class ServerEmbedder(Embedder):
    def __init__(self, gateway: ModelGateway, model: str) -> None:
        self.name = model
        self._model = ModelName.parse(model)
        self._gateway = gateway
        self._dimensions: int | None = None

    async def embed(self, texts: Sequence[str], *, user_id: str = "", run_id: str = "") -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            vectors += await self._gateway.embed(self._model, part, user_id, run_id)
        return [_unit(vector) for vector in vectors]

    async def dimensions(self) -> int:
        if self._dimensions is None:
            [vector] = await self.embed(["dimensions"])
            self._dimensions = len(vector)
        return self._dimensions


def embedder_of(settings: Settings, gateway: ModelGateway) -> Embedder:
    """The embedder that EMBEDDING_MODEL names, else the built-in one."""
    return ServerEmbedder(gateway, settings.embedding_model) if settings.embedding_model else HashedEmbedder()


def hashed(text: str) -> list[float]:
    counts = Counter(_features(unicodedata.normalize("NFKC", text).casefold()))
    vector = [0.0] * HASHED_DIMENSIONS
    for (feature, weight), count in counts.items():
        value = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
        # The sign, from a bit that the place does not use, lets features that share a place cancel out on average.
        sign = 1.0 if value >> 31 else -1.0
        vector[value % HASHED_DIMENSIONS] += sign * weight * (1.0 + math.log(count))
    return _unit(vector)


def _features(text: str) -> Iterator[tuple[str, float]]:
    words = _WORD.findall(text) or [text]
    for word in words:
        yield word, 1.0
        marked = f"<{word}>"
        for size in _GRAM_SIZES:
            for start in range(len(marked) - size + 1):
                yield marked[start : start + size], _GRAM_WEIGHT


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector
