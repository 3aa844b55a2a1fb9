"""Which deployment a person means: by its id, how that begins, its agent's id, or NAMESPACE/AGENT."""

import re

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import CANDIDATES_SHOWN, is_beginning, is_whole, the_only
from agentctl.api.pages import FetchPage, newest
from agentctl.exit_codes import CommandError, ExitCode
from backplane.domain.deployments import AGENT_ID_PATTERN, NAMESPACE_PATTERN

LOOKED_AT = 1_000
_LISTED_BY = "agentctl deployments list"


async def whole_deployment_id(client: Client, given: str) -> str:
    """Raises CommandError."""
    if is_whole(given):
        return given
    namespace, slash, agent_id = given.strip().rpartition("/")
    is_namespace = re.fullmatch(NAMESPACE_PATTERN, namespace) is not None
    if re.fullmatch(AGENT_ID_PATTERN, agent_id) and (is_namespace or not slash):
        filters = {"agent_id": agent_id, **({"namespace": namespace} if slash else {})}
        page = await client.deployments(limit=CANDIDATES_SHOWN + 1, **filters)
        found = page["deployments"]
        if len(found) == 1:
            return str(found[0]["id"])
        if found:
            shown = [f"  {one['id']}  {in_words(one)}" for one in found[:CANDIDATES_SHOWN]]
            lines = [f"Several deployments are called {given}; give NAMESPACE/AGENT or the id:", *shown]
            raise CommandError(ExitCode.USAGE, "\n".join(lines))
    if slash or not is_beginning(given):
        # For an administrator they are everybody's.
        where = f" {agent_id!r} in the namespace {namespace!r}" if slash else f" called {given!r}"
        text = f"There is no deployment{where} that you may see; `{_LISTED_BY}` lists them."
        raise CommandError(ExitCode.REFUSED, text)
    begins = given.strip().lower()
    fetch: FetchPage = lambda cursor, most: client.deployments(cursor, most)  # noqa: E731
    described = {one["id"]: in_words(one) for one in await newest(fetch, "deployments", LOOKED_AT)}
    return the_only("deployment", begins, described, _LISTED_BY)


async def deployment_of(client: Client, declared: JsonObject) -> JsonObject | None:
    """The one that is there of this agent in this namespace."""
    filters = {name: declared[name] for name in ("agent_id", "namespace")}
    found: list[JsonObject] = (await client.deployments(limit=1, **filters))["deployments"]
    return found[0] if found else None


def in_words(deployment: JsonObject) -> str:
    return f"{deployment['agent_id']} in {deployment['namespace']}, {deployment['status']}"
