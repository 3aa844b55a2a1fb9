"""What workers publish of their tools, and for how long it is taken for true."""

from typing import Any

import pytest

from backplane.redis.client import RedisClients
from backplane.tool_catalogue.base import MAX_BYTES, PublishedTool, ToolSet, decoded
from backplane.tool_catalogue.redis import RedisToolCatalogue
from tests.waiting import wait_until

LONG_SECONDS = 600


def tool(name: str, **changes: Any) -> PublishedTool:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    values = {"description": f"Does {name}.", "parameters": schema, "risk": "low", "repeatable": True, "package": ""}
    return PublishedTool(**{"name": name, "programs": ("text",), "paths": (), **values, **changes})


ONE = ToolSet((tool("one"), tool("ä", package="pkg 1.0")), has_model=True)
OTHER = ToolSet((tool("other"),), has_model=False)


async def published(catalogue: RedisToolCatalogue) -> list[ToolSet]:
    return [decoded(document) for _, document in await catalogue.published()]


async def test_nothing_is_published_where_no_worker_is(clients: RedisClients) -> None:
    assert await published(RedisToolCatalogue(clients)) == []


async def test_what_is_published_is_found_as_it_was(clients: RedisClients) -> None:
    catalogue = RedisToolCatalogue(clients)
    await catalogue.publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    assert await published(catalogue) == [ONE]


async def test_workers_with_the_same_tools_publish_one_set(clients: RedisClients) -> None:
    for _ in range(3):
        await RedisToolCatalogue(clients).publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    assert await published(RedisToolCatalogue(clients)) == [ONE]


async def test_sets_of_different_workers_stand_beside_each_other_the_newest_first(clients: RedisClients) -> None:
    catalogue = RedisToolCatalogue(clients)
    await catalogue.publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    await catalogue.publish(OTHER, worker_id="worker-1", seconds=LONG_SECONDS + 1)
    assert await published(catalogue) == [OTHER, ONE]


async def test_what_is_not_published_again_is_over_and_leaves_no_key(clients: RedisClients) -> None:
    catalogue = RedisToolCatalogue(clients)
    await catalogue.publish(OTHER, worker_id="worker-1", seconds=LONG_SECONDS)
    await catalogue.publish(ONE, worker_id="worker-1", seconds=0.05)

    async def only_the_other() -> bool:
        return await published(catalogue) == [OTHER]

    await wait_until(only_the_other)
    assert await clients.commands.exists(clients.keys.tool_set(ONE.encoded()[0])) == 0


async def test_a_redis_that_was_emptied_gets_the_tools_again(clients: RedisClients) -> None:
    catalogue = RedisToolCatalogue(clients)
    await catalogue.publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    digest = ONE.encoded()[0]
    await clients.commands.delete(clients.keys.tool_set(digest))
    assert await published(catalogue) == []
    await catalogue.publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    assert await published(catalogue) == [ONE]


async def test_the_workers_that_publish_are_known_until_they_do_not_any_more(clients: RedisClients) -> None:
    catalogue = RedisToolCatalogue(clients)
    assert await catalogue.publishers() == frozenset()
    await catalogue.publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    await catalogue.publish(ONE, worker_id="worker-2", seconds=0.05)

    async def only_the_first() -> bool:
        return await catalogue.publishers() == {"worker-1"}

    await wait_until(only_the_first)


async def test_every_key_has_an_end(clients: RedisClients) -> None:
    await RedisToolCatalogue(clients).publish(ONE, worker_id="worker-1", seconds=LONG_SECONDS)
    for key in (clients.keys.tools, clients.keys.tool_publishers, clients.keys.tool_set(ONE.encoded()[0])):
        assert 0 < await clients.commands.ttl(key) <= LONG_SECONDS


@pytest.mark.parametrize(("chars", "is_known"), [(MAX_BYTES - 1000, True), (MAX_BYTES, False)])
def test_a_set_that_is_too_large_is_published_as_one_of_which_nothing_is_known(chars: int, is_known: bool) -> None:
    large = ToolSet((tool("large", description="x" * chars),), has_model=True)
    _, document = large.encoded()
    assert len(document) <= MAX_BYTES
    assert decoded(document) == (large if is_known else ToolSet(None, has_model=True))


@pytest.mark.parametrize("document", ["", "[]", "{}", "null", '{"tools": [{}], "has_model": true}'])
def test_what_another_release_wrote_is_no_set(document: str) -> None:
    with pytest.raises(ValueError, match=r"not a set of tools|Expecting value"):
        decoded(document)
