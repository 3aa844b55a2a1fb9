"""Short ids: what a person gives for an id may be its beginning, as long as only one of the user's objects begins so.

The API is asked only for what is no whole id, and it answers with the user's own objects, so a beginning finds nothing
of anybody else's. Of several that begin so none is taken: the candidates are listed.
"""

import re

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.pages import FetchPage, newest
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.output import first_line, short_time
from agentctl.terminal.questions import asked_in_words
from backplane.domain.runs import AGENT_PATTERN

CANDIDATES_SHOWN = 10
DECISIONS_LOOKED_AT = 10_000
JOBS_LOOKED_AT = 1_000
_WHOLE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(AGENT_PATTERN)
_BEGINNING = re.compile(r"[0-9a-f-]{1,36}")


async def whole_run_id(client: Client, given: str) -> str:
    """Raises CommandError, as all of these do."""
    if is_whole(given):
        return given
    page = await client.runs(id_beginning=beginning(given, "run", "agentctl runs"), limit=CANDIDATES_SHOWN + 1)
    found = {
        run["run_id"]: f"{run['status']:9}  {short_time(run['created_at'])}  {first_line(run['prompt'])}"
        for run in page["runs"]
    }
    return the_only("run", given, found, "agentctl runs")


async def whole_agent_id(client: Client, given: str) -> str:
    """Of an agent that is named by its name, POOL/NAME, its id or the id's beginning. A name goes before a beginning,
    and an agent that lives before one of the name that was terminated."""
    if is_whole(given):
        return given
    pool, _, named = given.strip().rpartition("/")
    if _NAME.fullmatch(named) and (not pool or _NAME.fullmatch(pool)):
        of_name: JsonObject = {"name": named, **({"pool": pool} if pool else {})}
        for filters in (of_name, of_name | {"terminated": True}):
            page = await client.agents(limit=CANDIDATES_SHOWN + 1, **filters)
            found = {agent["agent_id"]: _agent_in_words(agent) for agent in page["agents"]}
            if len(found) == 1:
                return str(next(iter(found)))
            if found:
                lines = [f"Several agents of yours are called {given}; give POOL/NAME or the id:", *_shown(found)]
                raise CommandError(ExitCode.USAGE, "\n".join(lines))
    if not _BEGINNING.fullmatch(given.strip().lower()):
        raise _no_agent(given)
    page = await client.agents(id_beginning=given.strip().lower(), terminated=True, limit=CANDIDATES_SHOWN + 1)
    found = {agent["agent_id"]: _agent_in_words(agent) for agent in page["agents"]}
    if not found:
        raise _no_agent(given)
    return the_only("agent", given, found, "agentctl agents list")


def _agent_in_words(agent: JsonObject) -> str:
    is_terminated = " (terminated)" if agent.get("terminated_at") else ""
    return f"{agent['name']} in {agent['pool']}{is_terminated}"


def _no_agent(given: str) -> CommandError:
    text = (
        f"No agent of yours is called {given!r}, and none has an id that begins so; `agentctl agents list` lists them."
    )
    return CommandError(ExitCode.REFUSED, text)


async def whole_dead_letter_id(client: Client, given: str) -> str:
    """Of anybody's run: for admins."""
    if is_whole(given):
        return given
    begins = beginning(given, "dead letter", "agentctl dlq list")
    page = await client.dead_letters(id_beginning=begins, limit=CANDIDATES_SHOWN + 1)
    found = {
        letter["run_id"]: f"{letter['user']}  {letter['reason']}  {first_line(letter['prompt'])}"
        for letter in page["dead_letters"]
    }
    return the_only("dead letter", given, found, "agentctl dlq list")


async def whole_decision_id(client: Client, run_id: str, given: str) -> str:
    if is_whole(given):
        return given
    page: FetchPage = lambda cursor, most: client.decisions(run_id, None, cursor, most)  # noqa: E731
    found = await newest(page, "decisions", DECISIONS_LOOKED_AT)
    described = {one["decision_id"]: f"{one['status']}  {asked_in_words(one)}" for one in found}
    return the_only("decision", given, described, f"agentctl decisions {run_id}")


async def whole_call_id(client: Client, run_id: str, given: str) -> str:
    if is_whole(given):
        return given
    calls = {one["call_id"]: f"{one['step']}  {one['model']}" for one in await client.model_calls(run_id)}
    return the_only("call", given, calls, f"agentctl model-calls {run_id}")


async def whole_bulk_id(client: Client, given: str) -> str:
    if is_whole(given):
        return given
    page: FetchPage = lambda cursor, most: client.bulk_actions(cursor, most)  # noqa: E731
    found = await newest(page, "bulk_actions", JOBS_LOOKED_AT)
    described = {
        job["bulk_id"]: f"{job['action']:7}  {job['status']:9}  {short_time(job['created_at'])}" for job in found
    }
    return the_only("bulk action", given, described, "agentctl bulk list")


async def whole_export_id(client: Client, given: str) -> str:
    if is_whole(given):
        return given
    page: FetchPage = lambda cursor, most: client.exports(cursor, most)  # noqa: E731
    found = await newest(page, "exports", JOBS_LOOKED_AT)
    described = {
        job["export_id"]: f"{job['status']:9}  {short_time(job['created_at'])}  of run {job['run_id']}" for job in found
    }
    return the_only("export", given, described, "agentctl exports list")


def is_whole(given: str) -> bool:
    return _WHOLE.fullmatch(given) is not None


def is_beginning(given: str) -> bool:
    """Whether an id may begin so."""
    return _BEGINNING.fullmatch(given.strip().lower()) is not None


def beginning(given: str, what: str, listed_by: str) -> str:
    """Raises CommandError for what no id begins with."""
    if not is_beginning(given):
        raise _none(what, given, listed_by)
    return given.strip().lower()


def the_only(what: str, given: str, found: dict[str, str], listed_by: str) -> str:
    """The id that begins so. `found`: ids with a word about each; those that do not begin so are passed over, for an
    API of an earlier release does not look. Raises CommandError."""
    begins = given.strip().lower()
    candidates = {key: about for key, about in found.items() if begins and key.startswith(begins)}
    if begins in candidates:
        return begins
    if not candidates:
        raise _none(what, given, listed_by)
    if len(candidates) > 1:
        lines = [f"Several of your {what}s begin with {given}; give more of the id:", *_shown(candidates)]
        raise CommandError(ExitCode.USAGE, "\n".join(lines))
    return next(iter(candidates))


def _shown(candidates: dict[str, str]) -> list[str]:
    shown = [f"  {key}  {about}" for key, about in list(candidates.items())[:CANDIDATES_SHOWN]]
    return [*shown, *(["  and more"] if len(candidates) > CANDIDATES_SHOWN else [])]


def _none(what: str, given: str, listed_by: str) -> CommandError:
    return CommandError(ExitCode.REFUSED, f"No {what} of yours begins with {given!r}; `{listed_by}` lists them.")
