"""What a request that failed may have done, by how far it came and what was answered."""

import pytest

from worker.tools.base import Effect
from worker.tools.request_progress import RequestProgress, effect_of_status

NONE, POSSIBLE, CERTAIN = Effect.NONE, Effect.POSSIBLE, Effect.CERTAIN


@pytest.mark.parametrize(
    ("statuses", "effect"),
    [
        ((200, 201, 202, 204, 206, 299), CERTAIN),
        ((300, 301, 302, 303, 304), POSSIBLE),
        ((307, 308), NONE),
        ((400, 401, 403, 404, 405, 409, 410, 413, 421, 422, 423, 425, 429, 451, 499), NONE),
        ((408,), POSSIBLE),
        ((501, 505), NONE),
        ((500, 502, 503, 504, 507, 508, 511, 520, 599), POSSIBLE),
        ((100, 199, 600, 999), POSSIBLE),
    ],
)
def test_a_status_shows_what_the_server_did(statuses: tuple[int, ...], effect: Effect) -> None:
    assert {effect_of_status(status) for status in statuses} == {effect}


async def sent(progress: RequestProgress) -> None:
    await progress.trace("connection.connect_tcp.started", {})
    await progress.trace("connection.start_tls.complete", {})
    await progress.trace("http11.send_request_headers.started", {})


async def test_before_a_byte_left_nothing_has_happened() -> None:
    progress = RequestProgress()
    assert progress.effect is NONE
    await progress.trace("connection.connect_tcp.started", {})
    await progress.trace("connection.start_tls.failed", {})
    assert progress.effect is NONE
    await sent(progress)
    assert progress.effect is POSSIBLE


@pytest.mark.parametrize(("status", "effect"), [(500, POSSIBLE), (429, NONE), (200, CERTAIN)])
async def test_an_answer_shows_more_than_its_status(status: int, effect: Effect) -> None:
    progress = RequestProgress()
    await sent(progress)
    progress.answered(status)
    assert progress.effect is effect


@pytest.mark.parametrize(
    ("redirect", "effect"), [(307, NONE), (308, NONE), (301, POSSIBLE), (302, POSSIBLE), (303, POSSIBLE)]
)
async def test_a_redirect_that_leads_nowhere_leaves_what_the_first_server_did(redirect: int, effect: Effect) -> None:
    progress = RequestProgress()
    await sent(progress)
    progress.answered(redirect)
    progress.redirected(redirect)
    assert progress.effect is effect


async def test_after_a_redirect_that_keeps_the_method_the_other_server_counts_and_after_others_the_first_too() -> None:
    kept, changed = RequestProgress(), RequestProgress()
    for progress, status in ((kept, 307), (changed, 303)):
        await sent(progress)
        progress.answered(status)
        progress.redirected(status)
        await sent(progress)
        progress.answered(404)
    assert (kept.effect, changed.effect) == (NONE, POSSIBLE)
