"""Which runs of a process are carried out side by side, and which alone."""

import pytest

from backplane.domain.runs import Priority
from backplane.queue.base import Claim, Job
from worker.run import apart as module
from worker.run.apart import Apart


@pytest.fixture
def apart() -> Apart:
    return Apart()


def claim(run_id: str) -> Claim:
    return Claim(Job(run_id, "ada", Priority.NORMAL, 1), 0)


ONE, TWO, SUSPECT, OTHER = map(claim, ("one", "two", "suspect", "other suspect"))


def test_runs_are_carried_out_side_by_side(apart: Apart) -> None:
    assert apart.enters(ONE, alone=False)
    assert apart.enters(TWO, alone=False)


def test_a_run_is_alone_once_the_others_have_left_and_others_begin_when_it_has(apart: Apart) -> None:
    assert apart.enters(ONE, alone=False)
    assert not apart.enters(SUSPECT, alone=True)
    apart.leaves(ONE)
    assert apart.enters(SUSPECT, alone=True)
    assert not apart.enters(TWO, alone=False)
    assert not apart.enters(OTHER, alone=True)
    apart.leaves(SUSPECT)
    assert apart.enters(TWO, alone=False)


@pytest.mark.parametrize(("patient", "enters"), [(60.0, True), (0.0, False)])
def test_others_begin_before_one_that_is_to_be_alone_until_it_has_asked_for_long(
    apart: Apart, monkeypatch: pytest.MonkeyPatch, patient: float, enters: bool
) -> None:
    monkeypatch.setattr(module, "PATIENT_SECONDS", patient)
    assert apart.enters(ONE, alone=False)
    assert not apart.enters(SUSPECT, alone=True)
    assert apart.enters(TWO, alone=False) is enters


def test_one_that_asks_no_more_keeps_nobody_out(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENT_SECONDS", 0.0)
    assert apart.enters(ONE, alone=False)
    assert not apart.enters(SUSPECT, alone=True)
    monkeypatch.setattr(module, "FORGOTTEN_SECONDS", -1.0)
    assert apart.enters(TWO, alone=False)


def test_one_that_has_begun_keeps_nobody_out_afterwards(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENT_SECONDS", 0.0)
    assert apart.enters(ONE, alone=False)
    assert not apart.enters(SUSPECT, alone=True)
    apart.leaves(ONE)
    assert apart.enters(SUSPECT, alone=True)
    apart.leaves(SUSPECT)
    assert apart.enters(TWO, alone=False)
