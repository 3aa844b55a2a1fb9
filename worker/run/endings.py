"""How the end of a run is worded and logged, and when it comes."""

from datetime import UTC, datetime

import structlog

from backplane.domain.agents import message_expired
from backplane.domain.runs import Run, RunError
from backplane.queue.base import Claim, RunOutcome, Settlement
from worker.run.apart import SET_ASIDE_SECONDS

log = structlog.get_logger()


def log_settlement(settlement: Settlement) -> None:
    """Log in one line what became of a run."""
    match settlement.outcome:
        case RunOutcome.FINISHED:
            more = {"code": settlement.error} if settlement.error else {}
            log.info("run ended", status=settlement.status, **more)
        case RunOutcome.POSTPONED:
            log.info("run handed back until its next attempt", pause=round(settlement.delay_seconds, 1))
        case RunOutcome.SET_ASIDE:
            log.info(
                "run set aside: workers were lost with it, or with one that is alone in this process",
                crashes=settlement.claim.crashes,
            )
        case RunOutcome.HANDED_BACK:
            log.info("run handed back: the worker drains")
        case RunOutcome.DISOWNED:
            log.info("run handed back: another worker has it")


def set_aside(claim: Claim) -> Settlement:
    """It has to be alone, or another one is (`worker.run.apart`)."""
    return Settlement(claim, RunOutcome.SET_ASIDE, delay_seconds=SET_ASIDE_SECONDS)


def not_stored(error: Exception) -> RunError:
    """An error that contains no text of anybody else, so that it can be stored whatever the database refused."""
    return RunError(
        "not_stored",
        f"what became of this run could not be stored ({type(error).__name__}), so it was ended, and what is missing "
        "is lost. The worker's log says what was refused; an administrator may redrive the run when that is mended.",
    )


def why_cancelled(run: Run) -> RunError | None:
    """The error of a message whose time was up. A person who cancels a run needs none."""
    if run.expires_at is None or run.expires_at > datetime.now(UTC):
        return None
    return message_expired()


def seconds_left(run: Run) -> float:
    """How long this attempt may still take. A wrong clock cannot make it longer than the run's whole time."""
    spent = (datetime.now(UTC) - run.started_at).total_seconds() if run.started_at else 0.0
    return min(max(run.timeout_seconds - spent, 0.0), run.timeout_seconds)
