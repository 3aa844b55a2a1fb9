"""Which agents at work give their place to others that wait for one."""

from datetime import timedelta

import pytest

from backplane.domain.agent_places import PLACE_FOR, UsersPlaces, WaitingAgent, gives_place

SECOND = timedelta(seconds=1)
ONE = [WaitingAgent("bob", SECOND)]


def test_an_agent_keeps_its_place_for_its_time_and_gives_it_then() -> None:
    adas = {"ada": UsersPlaces(1)}
    assert not gives_place("ada", PLACE_FOR - SECOND, ONE, adas)
    assert gives_place("ada", PLACE_FOR, ONE, adas)


def test_an_agent_keeps_its_place_where_nobody_waits() -> None:
    assert not gives_place("ada", 10 * PLACE_FOR, [], {"ada": UsersPlaces(1)})


@pytest.mark.parametrize(("bobs", "gives"), [(0, True), (1, True), (2, False), (3, False)])
def test_an_agent_gives_its_place_to_users_with_fewer_places(bobs: int, gives: bool) -> None:
    assert gives_place("ada", PLACE_FOR, ONE, {"ada": UsersPlaces(2), "bob": UsersPlaces(bobs)}) is gives


def test_an_agent_gives_its_place_to_another_one_of_its_user() -> None:
    assert gives_place("bob", PLACE_FOR, ONE, {"ada": UsersPlaces(5), "bob": UsersPlaces(2)})


@pytest.mark.parametrize(("waiting", "earlier", "gives"), [(1, 0, True), (1, 1, False), (2, 1, True), (2, 2, False)])
def test_those_that_have_their_place_for_longest_go_first_one_for_each_that_waits(
    waiting: int, earlier: int, gives: bool
) -> None:
    assert gives_place("ada", PLACE_FOR, ONE * waiting, {"ada": UsersPlaces(9, earlier)}) is gives


def test_agents_that_give_their_place_to_none_of_those_that_wait_are_not_waited_for() -> None:
    users = {"ada": UsersPlaces(5), "eve": UsersPlaces(1, earlier=1), "bob": UsersPlaces(1)}
    assert gives_place("ada", PLACE_FOR, ONE, users)


@pytest.mark.parametrize(("waits", "gives"), [(2 * PLACE_FOR - SECOND, False), (2 * PLACE_FOR, True)])
def test_whoever_ends_a_turn_first_goes_where_an_agent_has_waited_for_twice_the_time(
    waits: timedelta, gives: bool
) -> None:
    waiting = [WaitingAgent("bob", waits)]
    assert gives_place("ada", PLACE_FOR, waiting, {"ada": UsersPlaces(9, earlier=8)}) is gives
