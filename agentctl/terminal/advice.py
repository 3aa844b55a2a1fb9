"""Which command helps after an error: one table from the stable codes of errors to advice.

The API and the store say what is wrong, to every client alike. Only the command line knows its own commands, so what to
type next stands here.
"""

from collections.abc import Mapping

from agentctl.terminal.output import program

IN_A_RUN = "in a run"
"""In place of a command: the error is a run's or a step's own."""

ADVICE: Mapping[tuple[str, str], str] = {
    ("unauthenticated", ""): "`{agentctl} token create` makes a token; set AGENT_TOKEN to it.",
    ("forbidden", ""): "`{agentctl} token create --user NAME --tier admin` makes a token of the tier admin.",
    ("forbidden", IN_A_RUN): "`{agentctl} secrets set NAME --tool TOOL --host HOST` says where a secret may be used.",
    ("not_found", "artifacts"): "`{agentctl} artifacts log` lists the commits of an agent.",
    ("not_found", "ledger"): "`{agentctl} ledger balance` lists the accounts.",
    ("not_found", "secrets"): "`{agentctl} secrets list` shows your secrets, `{agentctl} secrets set` keeps one.",
    ("not_found", "token"): "`{agentctl} token list` shows the tokens and their users.",
    ("conflict", "retry"): "Where a step may have happened: --take-as-done if it has, --repeat to carry it out again.",
    ("invalid_input", "approve"): "--add-tokens, --add-usd, --add-steps and --add-seconds raise a budget.",
    ("budget_exhausted", ""): "An administrator adds to an account: `{agentctl} ledger top-up OWNER RESOURCE AMOUNT`.",
    ("storage_quota_exceeded", ""): "`{agentctl} delete RUN` removes a run that is over.",
    ("secrets_not_kept", ""): "`{agentctl} secrets new-key` prints a new key.",
    ("queue_of_another", ""): "`{agentctl} take-over-redis` makes the queue this database's.",
    ("prompt_not_understood", ""): "`{agentctl} run --plan FILE` gives a plan with the run.",
    ("not_recorded", ""): "`{agentctl} replay RUN --execute` carries all steps out again.",
}
"""By the code and the command that met it; "": any command."""


def advice(code: str, command: str = "") -> str | None:
    """What to type after an error with this code that `command` met, such as `ledger`; None where nothing helps."""
    text = ADVICE.get((code, command)) or ADVICE.get((code, ""))
    return text.format(agentctl=program()) if text else None
