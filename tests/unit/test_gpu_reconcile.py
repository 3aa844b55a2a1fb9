"""What is done about a GPU machine, by its row and the provider's list: each case."""

from dataclasses import replace
from datetime import timedelta

import pytest

from backplane.domain.gpus import Machine, MachineState, RegisteredServer, label_of
from controller.gpus.provider import Instance
from controller.gpus.reconcile import (
    CREATE_GRACE,
    FAILED_CHECKS,
    GONE_GRACE,
    HEALTH_TRIES,
    ORPHAN_GRACE,
    MachineHealth,
    Seen,
    health_of,
    is_drained,
    orphans,
    registrations_of,
    step_of,
)
from tests.gpu_machines import PLATFORM, START, wanted

NOW = START + timedelta(hours=1)
AGO = timedelta(seconds=1)
MOST = timedelta(seconds=120)
WANTED, CREATING, STARTING, READY, DRAINING, TERMINATING, ENDED = MachineState


def machine(state: MachineState, since: timedelta = AGO, **values: object) -> Machine:
    made: dict[str, object] = {} if state in (WANTED, CREATING) else {"contract": "c"}
    if state is READY:
        made["ready_at"] = NOW
    return replace(wanted(), state=state, state_since=NOW - since, **{**made, **values})  # type: ignore[arg-type]


def there(contract: str = "c", label: str = label_of(PLATFORM, wanted()), status: str = "running") -> Instance:
    return Instance(contract, label, status, 400_000, "https://192.0.2.1:4000")  # type: ignore[arg-type]


LONG = CREATE_GRACE + AGO


@pytest.mark.parametrize(
    ("row", "instance", "act"),
    [
        pytest.param(machine(WANTED), None, "place", id="what is wanted is placed"),
        pytest.param(machine(WANTED, stop_reason="enough"), None, "end", id="or ends where it is not wanted any more"),
        pytest.param(machine(CREATING), there(), "adopt", id="what was made without an answer is found by its label"),
        pytest.param(machine(CREATING, CREATE_GRACE), None, "wait", id="it may still appear"),
        pytest.param(machine(CREATING, LONG), None, "not_made", id="after a while it was not made"),
        pytest.param(machine(CREATING, LONG, stop_reason="enough"), there(), "adopt", id="one to end is adopted first"),
        pytest.param(machine(STARTING), None, "wait", id="a list may not have a new one yet"),
        pytest.param(machine(STARTING, LONG), None, "missing", id="later it is missing"),
        pytest.param(machine(STARTING, ready_at=NOW), None, "missing", id="one that was there before is missing"),
        pytest.param(machine(READY), None, "missing", id="a ready one that a list lacks is missing"),
        pytest.param(
            machine(READY, missing_since=NOW - GONE_GRACE - AGO),
            None,
            "end",
            id="one that is missing for long has ended",
        ),
        pytest.param(machine(READY, missing_since=NOW - GONE_GRACE), None, "missing", id="but not before"),
        pytest.param(machine(STARTING), there(), "check", id="one that starts is checked"),
        pytest.param(machine(READY, checked_at=NOW - timedelta(seconds=10)), there(), "check", id="every ten seconds"),
        pytest.param(machine(READY, checked_at=NOW - timedelta(seconds=9)), there(), "wait", id="and no more often"),
        pytest.param(machine(READY), there(status="stopped"), "destroy", id="a stopped one pays for its disk and goes"),
        pytest.param(machine(READY), there(status="unknown"), "check", id="of an unknown one its server decides"),
        pytest.param(machine(READY, stop_reason="idle"), there(), "drain", id="a ready one drains before it ends"),
        pytest.param(machine(STARTING, stop_reason="idle"), there(), "destroy", id="one without calls does not"),
        pytest.param(machine(DRAINING, stop_reason="idle"), there(), "wait", id="it drains"),
        pytest.param(machine(TERMINATING, checked_at=NOW - AGO), there(), "wait", id="a destroy takes its time"),
        pytest.param(
            machine(TERMINATING, checked_at=NOW - timedelta(seconds=30)),
            there(),
            "destroy",
            id="and is asked for again",
        ),
        pytest.param(machine(TERMINATING, checked_at=NOW - AGO), None, "end", id="a later list without it ends it"),
        pytest.param(machine(TERMINATING, checked_at=NOW + AGO), None, "wait", id="a list from before says nothing"),
    ],
)
def test_each_state_has_one_next_step(row: Machine, instance: Instance | None, act: str) -> None:
    seen = Seen([instance] if instance else [], NOW)
    assert step_of(row, instance, seen, NOW, is_drained=False).act == act


@pytest.mark.parametrize(
    ("seconds", "calls", "drained"),
    [
        (14, 0, False),
        (15, 0, True),
        (15, 1, False),
        (15, None, False),
        (119, 1, False),
        (120, 1, True),
        (120, None, True),
    ],
)
def test_a_machine_has_drained_without_calls_or_after_its_time(seconds: int, calls: int | None, drained: bool) -> None:
    row = machine(DRAINING, timedelta(seconds=seconds), stop_reason="idle")
    assert is_drained(row, calls, MOST, NOW) is drained
    assert step_of(row, there(), Seen([there()], NOW), NOW, is_drained=drained).act == (
        "destroy" if drained else "wait"
    )


@pytest.mark.parametrize(
    ("row", "fault", "expected"),
    [
        pytest.param(machine(STARTING, health_tries=29), None, (READY, 0, False), id="one that serves is ready"),
        pytest.param(machine(STARTING, health_tries=28), "no", (STARTING, 29, False), id="29 tries are not enough"),
        pytest.param(machine(STARTING, health_tries=29), "no", (STARTING, HEALTH_TRIES, True), id="30 are"),
        pytest.param(machine(READY), "no", (READY, 1, False), id="one failed check means nothing"),
        pytest.param(
            machine(READY, health_tries=FAILED_CHECKS - 1), "no", (STARTING, FAILED_CHECKS, False), id="three do"
        ),
        pytest.param(machine(READY, health_tries=2), None, (READY, 0, False), id="and a good one between"),
    ],
)
def test_health_is_judged_by_the_tries(
    row: Machine, fault: str | None, expected: tuple[MachineState, int, bool]
) -> None:
    health: MachineHealth = health_of(row, fault)
    assert (health.state, health.tries, health.give_up) == expected


READY_ROW = machine(READY)
ORPHAN = there("x", label_of(PLATFORM, wanted("ffffffffffff")))


@pytest.mark.parametrize(
    ("instance", "known", "seen_for", "destroyed"),
    [
        pytest.param(there(), True, timedelta(), False, id="one that a row wants stays"),
        pytest.param(there("other"), True, timedelta(), True, id="a second one of a label goes"),
        pytest.param(
            there("old", label_of(PLATFORM, replace(wanted(), attempt=2))),
            True,
            timedelta(),
            True,
            id="another attempt goes",
        ),
        pytest.param(ORPHAN, False, ORPHAN_GRACE - AGO, False, id="one without a row waits"),
        pytest.param(ORPHAN, False, ORPHAN_GRACE, True, id="and goes then"),
        pytest.param(ORPHAN, True, timedelta(), True, id="one whose row has ended goes at once"),
        pytest.param(there("x", "somebody else's"), False, ORPHAN_GRACE * 9, False, id="other labels stay for ever"),
        pytest.param(
            there("x", label_of("0" * 32, wanted())), True, ORPHAN_GRACE * 9, False, id="also of another platform"
        ),
    ],
)
def test_only_machines_under_an_own_label_that_no_row_wants_are_destroyed(
    instance: Instance, known: bool, seen_for: timedelta, destroyed: bool
) -> None:
    ids = frozenset({"0123456789ab", *({"ffffffffffff"} if known else ())})
    found = orphans(Seen([instance], NOW), [READY_ROW], ids, {instance.contract: NOW - seen_for}, PLATFORM)
    assert found == ([instance] if destroyed else [])


SERVER = RegisteredServer("gpu-0123456789ab", "gpu", "ollama", "https://x", 4, "0123456789ab", "vastai", (), "R", 1)
DRAINS = replace(SERVER, draining=True)


@pytest.mark.parametrize(
    ("rows", "servers", "expected"),
    [
        ([READY_ROW], [], (1, 0, 0)),
        ([READY_ROW], [SERVER], (0, 0, 0)),
        ([machine(DRAINING)], [SERVER], (0, 1, 0)),
        ([machine(DRAINING)], [DRAINS], (0, 0, 0)),
        ([machine(TERMINATING)], [DRAINS], (0, 0, 1)),
        ([machine(STARTING)], [SERVER], (0, 0, 1)),
        ([machine(READY, missing_since=NOW)], [SERVER], (0, 0, 1)),
        ([machine(READY, missing_since=NOW)], [], (0, 0, 0)),
        ([], [SERVER], (0, 0, 1)),
    ],
)
def test_model_servers_are_those_of_ready_machines(
    rows: list[Machine], servers: list[RegisteredServer], expected: tuple[int, int, int]
) -> None:
    change = registrations_of(rows, servers)
    assert (len(change.add), len(change.drain), len(change.remove)) == expected
