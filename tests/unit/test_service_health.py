"""When a service is up, down or flapping, and what its owner is sent: a decision over one check after the other."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from backplane.domain.services import (
    FLAP_SECONDS,
    CheckResult,
    ContainerState,
    Health,
    HealthCheck,
    Report,
    Service,
    ServiceSpec,
    ServiceStatus,
    due_at,
    explanation,
    is_due,
    is_outdated,
    judged,
    name_fault,
    overall,
    report_event,
)

BEGIN = datetime(2026, 11, 30, 12, tzinfo=UTC)
UP, DOWN, UNKNOWN = ServiceStatus.UP, ServiceStatus.DOWN, ServiceStatus.UNKNOWN
CHECK = HealthCheck(failures=3, successes=2)


def after(results: str, *, seconds: float = 30.0, check: HealthCheck = CHECK) -> tuple[Health, list[Report], int]:
    """The health after these checks (`.` went well, `x` failed), what was reported, and how often it changed."""
    health, reports, changes = Health(), list[Report](), 0
    for number, result in enumerate(results):
        at = BEGIN + timedelta(seconds=number * seconds)
        judgement = judged(health, check, CheckResult(at, "it answered 500" if result == "x" else "", 1.0))
        health = judgement.health
        reports += [judgement.report] if judgement.report else []
        changes += judgement.changed
    return health, reports, changes


CASES: dict[str, tuple[str, ServiceStatus, Sequence[Report]]] = {
    "the first success is enough": (".", UP, [Report.UP]),
    "two failures are too few": ("xx", UNKNOWN, []),
    "three failures of a new one": ("xxx", DOWN, [Report.DOWN]),
    "failures that are not in a row": (".xx.xx.xx.", UP, [Report.UP]),
    "three in a row": (".xxx", DOWN, [Report.UP, Report.DOWN]),
    "more of the same": (".xxxxxx", DOWN, [Report.UP, Report.DOWN]),
    "one success is too few": ("xxx.x", DOWN, [Report.DOWN]),
    "two successes in a row": ("xxx..", UP, [Report.DOWN, Report.UP]),
}


@pytest.mark.parametrize("case", CASES)
def test_so_many_checks_in_a_row_change_the_status_and_are_reported_once(case: str) -> None:
    results, status, reports = CASES[case]
    health, reported, changes = after(results)
    assert (health.status, reported, changes) == (status, reports, len(reports))


def test_a_service_that_flaps_is_reported_once_and_its_history_has_every_change() -> None:
    health, reported, changes = after(".xxx.." + "xxx.." * 100, seconds=10)
    assert reported == [Report.UP, Report.DOWN, Report.UP, Report.FLAPPING]
    assert (changes, health.flapping_since is not None) == (203, True)


def test_a_service_that_has_settled_is_reported_as_what_it_is_now_and_flaps_anew() -> None:
    steady = int(FLAP_SECONDS / 10)
    flapping = ".xxx..xxx.."
    assert after(flapping + "." * (steady - 1), seconds=10)[1][-1] is Report.FLAPPING
    health, reported, _ = after(flapping + "." * steady, seconds=10)
    assert (reported[-2:], health.flapping_since, health.changes) == ([Report.FLAPPING, Report.UP], None, ())
    _, reported, _ = after(flapping + "." * steady + "xxx", seconds=10)
    assert reported[-1] is Report.DOWN


def test_one_that_settles_while_it_is_down_is_reported_as_down() -> None:
    _, reported, _ = after(".xxx..xxx" + "x" * int(FLAP_SECONDS / 10), seconds=10)
    assert reported[-2:] == [Report.FLAPPING, Report.DOWN]


def test_changes_that_are_far_apart_are_no_flapping() -> None:
    _, reported, changes = after(".xxx..xxx..xxx..", seconds=FLAP_SECONDS)
    assert (Report.FLAPPING not in reported, len(reported)) == (True, changes)


NEW = Health()


def service(health: Health = NEW, **changes: object) -> Service:
    values = {"id": "i", "owner_id": "o", "name": "redis", "spec": ServiceSpec(port=6379), "revision": 1}
    return Service(**{**values, "created_at": BEGIN, "updated_at": BEGIN, "health": health, **changes})  # type: ignore[arg-type]


def test_an_event_names_the_service_and_why_and_not_where_it_is() -> None:
    health = after(".xxx")[0]
    event = report_event(service(health), health, Report.DOWN)
    assert (event.type, event.subject, event.source) == ("service.down", "redis", "/api/nas/services/redis")
    assert "it answered 500" in event.line
    assert "127.0.0.1" not in event.line
    assert report_event(service(health), health, Report.DOWN).digest == event.digest


def test_a_service_is_due_at_once_and_then_after_its_interval() -> None:
    assert due_at(service()) < BEGIN
    assert due_at(service(Health(checked_at=BEGIN))) == BEGIN + timedelta(seconds=30)


EXPLAINED = {
    "not checked": (service(), "not checked yet"),
    "up": (service(after("..")[0]), "answers at 127.0.0.1:6379"),
    "up, with a failure": (service(after("..x")[0]), "last 1 checks failed"),
    "down": (service(after("xxx")[0]), "does not answer at 127.0.0.1:6379: it answered 500"),
    "few failures": (service(after("x")[0]), "1 of 3 checks"),
    "flapping": (service(after(".xxx..xxx", seconds=10)[0]), "up and down"),
    "no container yet": (service(container=ContainerState.WAITING), "SERVICES_CONTAINER_ENGINE"),
    "a container that fails": (service(container=ContainerState.FAILED, container_reason="no image"), "no image"),
    "being deleted": (service(deleted_at=BEGIN, container=ContainerState.STOPPING), "being deleted"),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_a_service_is_explained_in_words(case: str) -> None:
    explained, words = EXPLAINED[case]
    text = explanation(explained, BEGIN)
    assert words in text
    assert text.endswith(".")


def test_a_service_that_nobody_checks_is_outdated_after_two_intervals_and_a_minute() -> None:
    last = service(after("..")[0])
    checked = BEGIN + timedelta(seconds=30)
    late = checked + timedelta(seconds=2 * 30 + 5 + 60)
    assert (is_outdated(last, late), is_outdated(last, late + timedelta(seconds=1))) == (False, True)
    assert "not checked since: no controller runs" in explanation(last, late + timedelta(seconds=1))
    assert not is_outdated(service(), late)


def test_a_check_of_a_clock_that_was_ahead_delays_none() -> None:
    ahead = service(Health(checked_at=BEGIN + timedelta(days=1)))
    assert is_due(ahead, BEGIN)
    assert not is_due(service(Health(checked_at=BEGIN + timedelta(seconds=59))), BEGIN)
    flapping = Health(ServiceStatus.UP, changes=(BEGIN + timedelta(days=1),), flapping_since=BEGIN)
    assert judged(flapping, CHECK, CheckResult(BEGIN)).health.flapping_since is None


@pytest.mark.parametrize(
    ("statuses", "together"),
    [([], "unknown"), ([UP, UNKNOWN], "up"), ([UP, DOWN], "degraded"), ([DOWN], "down"), ([UNKNOWN], "unknown")],
)
def test_services_have_a_status_together(statuses: list[ServiceStatus], together: str) -> None:
    assert overall(statuses) == together


@pytest.mark.parametrize(
    "name", ["status", "", "Redis", "-a", "a-", "a_b", "a" * 64, "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"]
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    assert name_fault(name)


@pytest.mark.parametrize("name", ["a", "redis", "doc-engine", "a" * 63, "3proxy"])
def test_a_name_that_can_be_is_taken(name: str) -> None:
    assert not name_fault(name)
