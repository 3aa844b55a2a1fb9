"""What users have stored, as Redis keeps it."""

import asyncio

import pytest

from backplane.domain.stored import Reserved, StorageQuota, Stored
from backplane.errors import StorageExceeded
from backplane.limits.storage.redis import KNOWN_SECONDS, RESERVED_SECONDS, RedisStorage
from backplane.redis.client import RedisClients

QUOTA, NO_QUOTA = StorageQuota(bytes=100), StorageQuota()


@pytest.fixture
def storage(clients: RedisClients) -> RedisStorage:
    return RedisStorage(clients)


async def test_each_upload_learns_what_others_of_its_run_have_reserved(storage: RedisStorage) -> None:
    assert await storage.reserve("ada", "run-1", "a", 10, NO_QUOTA) == Reserved(0, 0)
    assert await storage.reserve("ada", "run-1", "b", 20, NO_QUOTA) == Reserved(1, 10)
    assert await storage.reserve("ada", "run-2", "c", 20, NO_QUOTA) == Reserved(0, 0)
    assert await storage.reserve("ada", "run-1", "a", 30, NO_QUOTA) == Reserved(1, 20)
    await storage.release("ada", "run-1", "a")
    assert await storage.reserve("ada", "run-1", "b", 20, NO_QUOTA) == Reserved(0, 0)


async def test_of_many_at_once_no_more_fit_than_a_user_may_keep(storage: RedisStorage) -> None:
    reserving = (storage.reserve("ada", f"run-{number % 3}", f"{number}", 30, QUOTA) for number in range(12))
    answers = await asyncio.gather(*reserving, return_exceptions=True)
    assert sum(isinstance(answer, Reserved) for answer in answers) == 3
    assert all(isinstance(answer, Reserved | StorageExceeded) for answer in answers)
    assert (await storage.of("ada")).bytes == 90


async def test_what_an_upload_has_written_stays_counted_and_the_rest_is_given_back(storage: RedisStorage) -> None:
    await storage.reserve("ada", "run-1", "a", 80, QUOTA)
    await storage.release("ada", "run-1", "a", grown=30)
    await storage.release("ada", "run-1", "a", grown=30)  # sent again because its answer was lost
    assert (await storage.of("ada")).bytes == 30
    await storage.reserve("ada", "run-1", "b", 70, QUOTA)


async def test_what_a_lost_process_had_reserved_comes_free(storage: RedisStorage, clients: RedisClients) -> None:
    await storage.reserve("ada", "run-1", "a", 80, QUOTA)
    await clients.commands.hset(clients.keys.uploads("run-1"), "a", "1:80")
    assert await storage.reserve("ada", "run-1", "b", 90, QUOTA) == Reserved(0, 0)
    assert (await storage.of("ada")).bytes == 90


async def test_files_grow_up_to_the_quota_and_no_further(storage: RedisStorage) -> None:
    await storage.grow("ada", 100, QUOTA)
    with pytest.raises(StorageExceeded, match="USER_MAX_BYTES"):
        await storage.grow("ada", 1, QUOTA)
    await storage.grow("ada", -50, QUOTA)
    await storage.grow("bob", 100, QUOTA)
    assert await storage.known() == {"ada": Stored(bytes=50), "bob": Stored(bytes=100)}


async def test_a_count_replaces_what_was_known_and_keeps_what_came_meanwhile(storage: RedisStorage) -> None:
    await storage.grow("ada", 40, QUOTA)
    await storage.grow("gone", 40, QUOTA)
    before = await storage.known()
    await storage.grow("ada", 5, QUOTA)
    await storage.count_files(before, {"ada": 60, "new": 7})
    await storage.count_rows({"ada": Stored(runs=2, events=9)})
    assert await storage.known() == {
        "ada": Stored(2, 9, 65),
        "gone": Stored(0, 0, 0),
        "new": Stored(0, 0, 7),
    }


@pytest.mark.parametrize("wrong", [-1000, 1000])
async def test_a_count_mends_a_number_that_is_wrong(storage: RedisStorage, clients: RedisClients, wrong: int) -> None:
    await storage.grow("ada", 40, QUOTA)
    await clients.commands.hset(clients.keys.storage("ada"), "bytes", str(wrong))
    assert (await storage.of("ada")).bytes == max(wrong, 0)
    await storage.count_files(await storage.known(), {"ada": 40})
    assert (await storage.of("ada")).bytes == 40


async def test_what_is_deleted_twice_takes_nothing_below_zero(storage: RedisStorage) -> None:
    await storage.grow("ada", 60, QUOTA)
    await asyncio.gather(storage.grow("ada", -60, QUOTA), storage.grow("ada", -60, QUOTA))
    assert await storage.known() == {"ada": Stored(bytes=0)}
    await storage.grow("ada", 100, QUOTA)
    with pytest.raises(StorageExceeded):
        await storage.grow("ada", 1, QUOTA)


async def test_what_is_deleted_before_anything_was_counted_is_not_counted(storage: RedisStorage) -> None:
    await storage.grow("ada", -60, QUOTA)
    assert await storage.of("ada") == Stored()
    assert await storage.known() == {}


async def test_an_upload_that_ends_after_its_users_numbers_were_lost_takes_nothing_below_zero(
    storage: RedisStorage, clients: RedisClients
) -> None:
    await storage.reserve("ada", "run-1", "a", 80, QUOTA)
    await clients.commands.delete(clients.keys.storage("ada"))
    await storage.release("ada", "run-1", "a", grown=30)
    assert await storage.known() == {}


async def test_all_users_are_known_page_by_page(storage: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backplane.limits.storage.redis.AT_ONCE", 2)
    counted = {f"user-{number}": Stored(runs=number, events=1) for number in range(5)}
    await storage.count_rows(counted)
    assert await storage.known() == counted


async def test_nothing_is_known_of_a_user_for_ever(storage: RedisStorage, clients: RedisClients) -> None:
    await storage.reserve("ada", "run-1", "a", 1, QUOTA)
    await storage.count_rows({"bob": Stored(runs=1, events=1)})
    await storage.grow("eve", 1, QUOTA)
    lives = {name: await clients.commands.ttl(clients.keys.storage(name)) for name in ("ada", "bob", "eve")}
    assert all(KNOWN_SECONDS - 60 < seconds <= KNOWN_SECONDS for seconds in lives.values())
    assert KNOWN_SECONDS - 60 < await clients.commands.ttl(clients.keys.storage_users) <= KNOWN_SECONDS
    assert 0 < await clients.commands.ttl(clients.keys.uploads("run-1")) <= RESERVED_SECONDS


async def test_what_was_deleted_is_taken_from_what_was_counted_down_to_nothing(storage: RedisStorage) -> None:
    await storage.shrink("ada", runs=1, events=5)
    assert await storage.of("ada") == Stored()
    await storage.count_rows({"ada": Stored(runs=2, events=9)})
    await storage.shrink("ada", runs=1, events=5)
    assert await storage.of("ada") == Stored(runs=1, events=4)
    await storage.shrink("ada", runs=3, events=5)
    assert await storage.of("ada") == Stored(runs=0, events=0)


async def test_it_is_known_when_something_was_counted(storage: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backplane.limits.storage.redis.time.time", lambda: 1000.5)
    await storage.grow("ada", 5, NO_QUOTA)
    found = await storage.of("ada")
    assert (found.rows_at, found.files_at) == (None, None)
    await storage.count_rows({"ada": Stored(runs=2, events=9)})
    found = await storage.of("ada")
    assert (found.rows_at, found.files_at) == (1000, None)
    await storage.count_files({}, {"ada": 5})
    assert (await storage.of("ada")).files_at == 1000
