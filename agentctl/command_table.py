"""Where each command is, and what a shell shows of it while a name is being completed.

A command's module is loaded when it is called, and for the help: the clients of HTTP and of the database take longer to
load than all else that a short command does, and a person waits for them at each press of Tab.
"""

from typing import NamedTuple

HERE, RUNS, OPERATORS = "The platform on this machine", "Runs", "For operators"


class Place(NamedTuple):
    """`attribute`: a function, or a `typer.Typer` with commands of its own. `panel`: under which it stands in the help.
    `summary`: the short help, as it is loaded."""

    module: str
    attribute: str
    panel: str
    summary: str


COMMANDS = {
    "run": Place("agentctl.commands.runs", "run", RUNS, "Start a run and follow it to its end."),
    "start": Place("agentctl.commands.runs", "start", RUNS, "Start a run that was created and not..."),
    "validate": Place("agentctl.commands.validate", "validate", RUNS, "Say all that is wrong with a plan or a..."),
    "tools": Place("agentctl.commands.validate", "tools", RUNS, "List the tools that live workers have, or..."),
    "logs": Place("agentctl.commands.runs", "logs", RUNS, "Show a run's events: those there are, or..."),
    "events": Place("agentctl.commands.runs", "events", RUNS, "Show the events of all your runs as they..."),
    "runs": Place("agentctl.commands.runs", "runs", RUNS, "List runs, the newest first."),
    "show": Place("agentctl.commands.runs", "show", RUNS, "Show a run: its state, times, steps and..."),
    "cancel": Place("agentctl.commands.runs", "cancel", RUNS, "Cancel a run: at once while it is queued,..."),
    "retry": Place("agentctl.commands.runs", "retry", RUNS, "Put a failed run in the queue again, or..."),
    "explain": Place("agentctl.commands.runs", "explain", RUNS, "Say why a run waits, and about how long."),
    "queue": Place("agentctl.commands.runs", "queue", RUNS, "Show what is queued and running, and about..."),
    "usage": Place("agentctl.commands.storage", "usage", RUNS, "Show how much of runs, events and files..."),
    "delete": Place("agentctl.commands.storage", "delete", RUNS, "Delete runs that are over, with their..."),
    "decisions": Place("agentctl.commands.decisions", "decisions", RUNS, "List what your runs ask you, the newest..."),
    "approve": Place("agentctl.commands.decisions", "approve", RUNS, "Let a step be carried out, or a run go on..."),
    "reject": Place("agentctl.commands.decisions", "reject", RUNS, "Refuse what a run asks for."),
    "answer": Place("agentctl.commands.decisions", "answer", RUNS, "Answer a question of a run."),
    "fork": Place("agentctl.commands.derived_runs", "fork", RUNS, "Make a new run that goes on from a step of..."),
    "replay": Place("agentctl.commands.derived_runs", "replay", RUNS, "Show a run again from its records, and..."),
    "plans": Place("agentctl.commands.derived_runs", "plans", RUNS, "Show all plans that a run has had, and why..."),
    "model-calls": Place(
        "agentctl.commands.derived_runs", "model_calls", RUNS, "List the calls of models that a run has..."
    ),
    "webhook-secret": Place(
        "agentctl.commands.webhooks", "webhook_secret", RUNS, "Show the secret that your webhooks are..."
    ),
    "completion": Place("agentctl.completion", "completion", HERE, "Print the script by which a shell..."),
    "files": Place("agentctl.commands.files", "app", RUNS, "List, fetch and put the files of a run's..."),
    "dlq": Place("agentctl.commands.dead_letters", "app", OPERATORS, "List, redrive and purge the runs that the..."),
    "up": Place("agentctl.commands.up", "up", HERE, "Run everything on this machine until..."),
    "demo": Place("agentctl.commands.demo", "demo", HERE, "Start everything in a temporary folder,..."),
    "token": Place("agentctl.commands.admin", "tokens", OPERATORS, "Make, list and revoke the bearer tokens of..."),
    "migrate": Place("agentctl.commands.admin", "migrate", OPERATORS, "Bring the database's tables to the newest..."),
    "take-over-redis": Place(
        "agentctl.commands.admin", "take_over_redis", OPERATORS, "Make the queue in Redis this database's,..."
    ),
    "artifacts": Place("agentctl.commands.artifacts", "app", RUNS, "See what agents keep from run to run, and..."),
    "calibrate": Place(
        "agentctl.commands.calibrate", "calibrate", OPERATORS, "Find the rate of tokens at which agents..."
    ),
    "models": Place("agentctl.commands.models", "app", OPERATORS, "What fits on a GPU."),
    "budget": Place("agentctl.commands.ledger", "budget", RUNS, "Show what is left to you of what limits..."),
    "secrets": Place("agentctl.commands.secrets", "app", RUNS, "Keep named values that steps may use..."),
    "ledger": Place("agentctl.commands.ledger", "app", OPERATORS, "See and change who may spend how much."),
    "doctor": Place("agentctl.commands.doctor", "doctor", OPERATORS, "Say which parts are found, which sandbox..."),
    "settings": Place("agentctl.commands.about", "settings", OPERATORS, "List every setting: its name in the..."),
    "version": Place("agentctl.commands.about", "show_version", OPERATORS, "Show the version of this program."),
}
