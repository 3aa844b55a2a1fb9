"""How much of the events that are not stored yet may be kept in Redis."""

import pytest

from app.streams.buffer import Frame, Watched
from backplane.logs.room import WITHOUT_MAXMEMORY, LogLimits, RedisMemory, room_of

MIB = 1024**2
LIMITS = LogLimits(run_bytes=4 * MIB, user_bytes=16 * MIB, all_bytes=0, run_events=100)


@pytest.mark.parametrize(
    ("all_bytes", "memory", "expected"),
    [
        (0, RedisMemory(used=0, most=800 * MIB), 200 * MIB),
        (0, RedisMemory(used=0, most=0), WITHOUT_MAXMEMORY),
        (50 * MIB, RedisMemory(used=0, most=800 * MIB), 50 * MIB),
        (50 * MIB, RedisMemory(used=0, most=0), 50 * MIB),
        (0, RedisMemory(used=600 * MIB - 1, most=800 * MIB), 200 * MIB),
        (0, RedisMemory(used=600 * MIB, most=800 * MIB), 0),
        (50 * MIB, RedisMemory(used=600 * MIB, most=800 * MIB), 0),
    ],
)
def test_what_all_may_keep_is_what_is_set_or_a_fourth_of_the_memory_and_nothing_when_that_is_short(
    all_bytes: int, memory: RedisMemory, expected: int
) -> None:
    limits = LogLimits(LIMITS.run_bytes, LIMITS.user_bytes, all_bytes, LIMITS.run_events)
    assert room_of(limits, memory, workers=1).all_bytes == expected


@pytest.mark.parametrize(
    ("workers", "shares"), [(0, (4, 16, 256)), (1, (4, 16, 256)), (2, (4, 8, 128)), (8, (2, 2, 32))]
)
def test_each_worker_has_an_equal_part_of_what_a_user_and_all_may_keep(
    workers: int, shares: tuple[int, int, int]
) -> None:
    room = room_of(LIMITS, RedisMemory(0, 0), workers)
    assert (room.run_bytes // MIB, room.user_bytes // MIB, room.all_bytes // MIB) == shares


def test_a_run_keeps_no_more_than_its_user_and_a_user_no_more_than_all() -> None:
    room = room_of(LIMITS, RedisMemory(0, 4 * MIB), workers=1)
    assert (room.run_bytes, room.user_bytes, room.all_bytes) == (MIB, MIB, MIB)


def frames(first: int, last: int, size: int) -> list[Frame[int]]:
    return [Frame(number, b"x" * size, False) for number in range(first, last + 1)]


@pytest.mark.parametrize(("size", "kept"), [(1, 100), (99, 100), (101, 99), (1000, 10), (9_999, 1), (10_001, 0)])
def test_a_ring_holds_the_newest_frames_by_number_and_by_bytes(size: int, kept: int) -> None:
    ring: Watched[int] = Watched(0, buffer_size=100, buffer_bytes=10_000)
    ring.extend(frames(1, 201, size), 201)
    assert ring.oldest_kept == 201 - kept
    assert ring.after(ring.oldest_kept) is not None
    assert ring.after(ring.oldest_kept - 1) is None


def test_a_ring_never_grows_over_twice_its_bytes() -> None:
    ring: Watched[int] = Watched(0, buffer_size=1000, buffer_bytes=10_000)
    for number in range(1, 500):
        ring.extend(frames(number, number, 300), number)
        assert (number - ring.oldest_kept) * 300 <= 20_000
    assert ring.newest - ring.oldest_kept >= 33
