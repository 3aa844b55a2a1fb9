"""The checker can fail: each promise broken once, on purpose, is found and named, and nothing else is."""

from dataclasses import replace

import pytest

from tests.chaos.checker import Broken, Event, Facts, Leftovers, PlannedStep, RunFacts, WatcherFacts, check

LOST = Event(1006, "gap", "skipped", after=5, before=1006)
PERMANENT = ("jobs:pending", "jobs:leases", "jobs:held:{gate}")


def line(number: int, type: str = "log") -> Event:
    return Event(number, type, f"line {number}")


HISTORY = (line(1, "status"), line(2), line(3), line(4), line(5), line(6, "end"))
RUN = RunFacts(
    "run", (PlannedStep("a"), PlannedStep("b"), PlannedStep("c", True)), "completed", ("a", "b", "c"), HISTORY
)
WATCHER = WatcherFacts("ada", "run", HISTORY)
GOOD = Facts((RUN,), (WATCHER,), Leftovers({"jobs:pending": -1, "jobs:run": 3600}, PERMANENT))


def with_run(**values: object) -> Facts:
    return replace(GOOD, runs=(replace(RUN, **values),), watchers=())  # type: ignore[arg-type]


def with_watcher(*events: Event, emptied: bool = False) -> Facts:
    return replace(GOOD, watchers=(replace(WATCHER, events=events),), redis_was_emptied=emptied)


def with_leftovers(**values: object) -> Facts:
    return replace(GOOD, leftovers=Leftovers(**{"permanent": PERMANENT, **values}))  # type: ignore[arg-type]


def broken(facts: Facts) -> set[Broken]:
    return {complaint.broken for complaint in check(facts)}


def test_there_is_nothing_to_complain_of_where_all_went_well() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize("status", [None, "queued", "running", "waiting"])
def test_a_run_that_reached_no_final_state_is_lost(status: str | None) -> None:
    assert broken(with_run(status=status)) == {Broken.RUN_LOST}


def test_a_run_that_nobody_cancelled_is_lost_when_it_is_cancelled() -> None:
    assert broken(with_run(status="cancelled")) == {Broken.RUN_LOST}
    assert broken(with_run(status="cancelled", is_cancelled=True)) == set()


def test_a_run_that_failed_by_the_faults_alone_is_named() -> None:
    assert broken(with_run(status="failed", error="worker_lost")) == {Broken.RUN_FAILED}


def test_a_step_without_its_mark_is_missing() -> None:
    assert broken(with_run(marks=("a", "c"))) == {Broken.STEP_MISSING}


def test_a_step_done_twice_is_doubled_unless_it_is_declared_repeatable() -> None:
    assert broken(with_run(marks=("a", "a", "b", "c"))) == {Broken.STEP_DOUBLED}
    assert broken(with_run(marks=("a", "b", "c", "c"))) == set()


def test_a_mark_of_no_step_of_the_plan_is_named() -> None:
    assert broken(with_run(marks=("a", "b", "c", "d"))) == {Broken.STEP_DOUBLED}


def test_steps_done_in_another_order_than_the_plans_are_named() -> None:
    assert broken(with_run(marks=("b", "a", "c"))) == {Broken.STEP_DISORDERED}


def test_an_event_that_a_watcher_did_not_get_is_missed() -> None:
    assert broken(with_watcher(*HISTORY[:2], *HISTORY[3:])) == {Broken.EVENT_MISSED}


def test_a_watcher_that_begins_late_in_the_history_has_missed_its_beginning() -> None:
    assert broken(with_watcher(*HISTORY[2:])) == {Broken.EVENT_MISSED}


def test_an_event_that_a_watcher_got_twice_is_repeated() -> None:
    assert broken(with_watcher(*HISTORY[:3], HISTORY[2], *HISTORY[3:])) == {Broken.EVENT_REPEATED}


def test_an_event_that_overtook_another_is_out_of_order() -> None:
    first, second, third, *rest = HISTORY
    assert Broken.EVENT_DISORDERED in broken(with_watcher(first, third, second, *rest))


def test_an_event_that_another_watcher_would_see_otherwise_differs() -> None:
    assert broken(with_watcher(*HISTORY[:2], replace(HISTORY[2], line="else"), *HISTORY[3:])) == {Broken.EVENT_DIFFERS}


def test_an_event_that_nobody_kept_differs() -> None:
    stored = replace(RUN, events=HISTORY)
    seen = (*HISTORY[:5], line(6), line(7, "end"))
    assert Broken.EVENT_DIFFERS in broken(replace(GOOD, runs=(stored,), watchers=(replace(WATCHER, events=seen),)))


def test_a_stream_without_an_end_is_named() -> None:
    assert broken(with_watcher(*HISTORY[:-1])) == {Broken.END_MISSING, Broken.EVENT_MISSED}
    assert broken(with_watcher()) == {Broken.END_MISSING, Broken.EVENT_MISSED}


def test_what_comes_after_the_end_is_named() -> None:
    assert broken(with_watcher(*HISTORY, HISTORY[-1])) == {Broken.EVENT_REPEATED}


def test_a_history_with_a_hole_in_the_database_is_named() -> None:
    assert broken(with_run(events=(*HISTORY[:2], *HISTORY[3:]))) == {Broken.EVENT_MISSED}


def test_a_gap_must_have_a_cause() -> None:
    events = (*HISTORY[:5], LOST, line(1007, "end"))
    facts = replace(GOOD, runs=(replace(RUN, events=events),), watchers=(replace(WATCHER, events=events),))
    assert broken(facts) == {Broken.GAP_UNFOUNDED}
    assert broken(replace(facts, redis_was_emptied=True)) == set()


def test_a_gap_must_cover_the_hole() -> None:
    events = (*HISTORY[:5], replace(LOST, after=8), line(1007, "end"))
    facts = replace(GOOD, runs=(replace(RUN, events=events),), watchers=(), redis_was_emptied=True)
    assert broken(facts) == {Broken.EVENT_MISSED}


def test_what_a_watcher_saw_and_a_gap_declared_lost_is_no_fault() -> None:
    stored = (*HISTORY[:5], LOST, line(1007, "end"))
    seen = (*HISTORY[:5], line(6), LOST, line(1007, "end"))
    facts = replace(GOOD, runs=(replace(RUN, events=stored),), watchers=(replace(WATCHER, events=seen),))
    assert broken(replace(facts, redis_was_emptied=True)) == set()


def test_a_key_without_a_lifetime_is_left_over_unless_it_is_declared_permanent() -> None:
    assert broken(with_leftovers(keys={"jobs:run": -1})) == {Broken.KEY_LEFT}
    assert broken(with_leftovers(keys={"jobs:held:user:ada": -1, "jobs:run": 60})) == set()


def test_a_permanent_key_that_names_a_run_that_is_over_is_left_over() -> None:
    assert broken(with_leftovers(holding={"jobs:pending": ("run",)})) == {Broken.KEY_LEFT}


def test_a_lease_that_somebody_holds_is_left_over() -> None:
    assert broken(with_leftovers(leases=("run",))) == {Broken.LEASE_LEFT}


def test_a_process_that_outlived_the_platform_is_left_over() -> None:
    assert broken(with_leftovers(processes=("4711 python -m worker",))) == {Broken.PROCESS_LEFT}
