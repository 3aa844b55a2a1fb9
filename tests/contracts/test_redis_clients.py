"""What every client of Redis gives the adapters: a persistent connection, or requests to a REST API."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from redis.exceptions import ResponseError

from backplane.errors import Unavailable
from backplane.redis.client import RedisClients, Script, translated

BEYOND_DOUBLES = 2**53 + 1
NESTED = "return {1, {KEYS[1], {ARGV[1], false}}, {}, redis.call('TIME')[3]}"


def script(clients: RedisClients, folder: Path, text: str) -> Script:
    path = folder / "script.lua"
    path.write_text(text)
    return Script(clients, path)


@pytest.mark.parametrize(
    "value",
    ["", "a", "OK", "PONG", "a\x00b", "two\nlines\r\n", "žluťoučký 🦄\u2028", '{"json": [1]}', "x" * 1_500_000],
    ids=["empty", "letter", "OK", "PONG", "zero", "lines", "letters", "json", "1.5 MB"],
)
async def test_a_text_comes_back_as_it_was(clients: RedisClients, value: str) -> None:
    await clients.commands.set("{agents}:a", value)
    await cast(Any, clients.commands.hset("{agents}:h", mapping={value: value}))
    assert await clients.commands.get("{agents}:a") == value
    assert await cast(Any, clients.commands.hgetall("{agents}:h")) == {value: value}


@pytest.mark.parametrize("value", [0, -7, BEYOND_DOUBLES, 2**63 - 1])
async def test_a_number_comes_back_as_it_was(clients: RedisClients, value: int) -> None:
    assert await clients.commands.incrby("{agents}:n", value) == value


@pytest.mark.parametrize("value", [1800000000.25, 1e22, 1e-7, 0.1, 3])
async def test_a_number_is_written_in_the_same_digits(clients: RedisClients, value: float) -> None:
    await clients.commands.set("{agents}:a", value)
    await clients.commands.zadd("{agents}:z", {"m": value})
    assert await clients.commands.get("{agents}:a") == repr(value)
    assert await clients.commands.zrange("{agents}:z", 0, -1, withscores=True) == [("m", value)]


async def test_nothing_and_lists_within_lists_come_back(clients: RedisClients, tmp_path: Path) -> None:
    nested = script(clients, tmp_path, NESTED)
    assert await nested(["{agents}:k"], ["v"]) == [1, ["{agents}:k", ["v", None]], []]
    await cast(Any, clients.commands.hset("{agents}:h", "a", "1"))
    assert await cast(Any, clients.commands.hmget("{agents}:h", ["a", "b"])) == ["1", None]
    assert await clients.commands.get("{agents}:nothing") is None


async def test_a_script_runs_also_where_redis_does_not_know_it(clients: RedisClients, tmp_path: Path) -> None:
    twice = script(clients, tmp_path, "return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await twice.batch([(["{agents}:a"], [2]), (["{agents}:b"], [3]), (["{agents}:a"], [2])]) == [2, 3, 4]
    await clients.commands.script_flush()
    assert await twice(["{agents}:a"], [1]) == 5


async def test_commands_of_a_transaction_are_carried_out_together(clients: RedisClients) -> None:
    async def push(number: int) -> list[Any]:
        async with clients.commands.pipeline(transaction=True) as pipeline:
            for _ in range(20):
                pipeline.rpush("{agents}:l", number)
            pipeline.expire("{agents}:l", 60)
            return list(await pipeline.execute())

    answers = await asyncio.gather(*map(push, range(10)))
    found = await cast(Any, clients.commands.lrange("{agents}:l", 0, -1))
    assert all(len(set(found[start : start + 20])) == 1 for start in range(0, 200, 20))
    assert all(answer[-1] is True for answer in answers)


async def test_what_is_no_text_is_refused_where_text_is_read(clients: RedisClients) -> None:
    await clients.commands.eval("redis.call('SET', KEYS[1], '\\255\\254')", 1, "{agents}:a")
    with pytest.raises(UnicodeDecodeError):
        await clients.commands.get("{agents}:a")


async def test_half_a_letter_is_refused_before_it_is_sent(clients: RedisClients) -> None:
    with pytest.raises(UnicodeEncodeError):
        await clients.commands.set("{agents}:a", "\ud800")


async def refusal(clients: RedisClients, call: Any) -> str:
    with pytest.raises(Unavailable) as refused, translated():
        await call
    assert refused.value.part == "redis"
    return refused.value.message


async def test_a_key_of_another_kind_is_a_refusal(clients: RedisClients, tmp_path: Path) -> None:
    await cast(Any, clients.commands.lpush("{agents}:l", "a"))
    assert "WRONGTYPE" in await refusal(clients, clients.commands.hget("{agents}:l", "a"))
    reads = script(clients, tmp_path, "return redis.call('HGET', KEYS[1], 'a')")
    assert "WRONGTYPE" in await refusal(clients, reads(["{agents}:l"], []))
    async with clients.commands.pipeline(transaction=False) as pipeline:
        pipeline.get("{agents}:a")
        pipeline.hget("{agents}:l", "a")
        assert "WRONGTYPE" in await refusal(clients, pipeline.execute())


async def test_a_redis_that_is_full_is_a_refusal(clients: RedisClients, tmp_path: Path) -> None:
    writes = script(clients, tmp_path, "return redis.call('SET', KEYS[1], ARGV[1])")
    await clients.commands.config_set("maxmemory", "1")
    try:
        assert "OOM" in await refusal(clients, clients.commands.set("{agents}:a", "b"))
        assert "OOM" in await refusal(clients, writes(["{agents}:a"], ["b"]))
    finally:
        await clients.commands.config_set("maxmemory", "0")


async def test_a_command_that_is_wrong_is_no_outage(clients: RedisClients) -> None:
    with pytest.raises(ResponseError), translated():
        await cast(Any, clients.commands).execute_command("NOSUCHCOMMAND")
    with pytest.raises(ResponseError), translated():
        await clients.commands.incrby("{agents}:a", cast(Any, "x"))


async def test_fifty_callers_at_once_each_get_their_own_answer(clients: RedisClients, tmp_path: Path) -> None:
    echo = script(clients, tmp_path, "return ARGV[1]")
    answers = await asyncio.gather(*(echo(["{agents}:k"], [f"caller {number}"]) for number in range(50)))
    assert answers == [f"caller {number}" for number in range(50)]
