"""Where each command is, and what a shell shows of it while a name is being completed.

A command's module is loaded when it is called, and for the help: the clients of HTTP and of the database take longer to
load than all else that a short command does, and a person waits for them at each press of Tab.
"""

from typing import NamedTuple

HERE, RUNS, OPERATORS = "The platform on this machine", "Runs", "For operators"
AGENTS = "Agents that live"


class CommandEntry(NamedTuple):
    """`attribute`: a function, or a `typer.Typer` with commands of its own. `panel`: under which it stands in the help.
    `summary`: the short help, as it is loaded."""

    module: str
    attribute: str
    panel: str
    summary: str


COMMANDS = {
    "run": CommandEntry("agentctl.commands.runs", "run", RUNS, "Start a run and follow it to its end."),
    "start": CommandEntry("agentctl.commands.runs", "start", RUNS, "Start a run that was created and not..."),
    "validate": CommandEntry(
        "agentctl.commands.validate", "validate", RUNS, "Say all that is wrong with a plan or a..."
    ),
    "tools": CommandEntry("agentctl.commands.validate", "tools", RUNS, "List the tools that live workers have, or..."),
    "logs": CommandEntry("agentctl.commands.runs", "logs", RUNS, "Show a run's events: those there are, or..."),
    "events": CommandEntry("agentctl.commands.events", "app", RUNS, "Show the events of all your runs as they..."),
    "handlers": CommandEntry(
        "agentctl.commands.handlers", "handlers", RUNS, "List the handlers that live workers have,..."
    ),
    "agents": CommandEntry("agentctl.commands.agents", "app", AGENTS, "Agents that live: make them, send them..."),
    "pools": CommandEntry("agentctl.commands.pools", "app", AGENTS, "Pools of agents: how full they are, and..."),
    "deployments": CommandEntry(
        "agentctl.commands.deployments", "app", AGENTS, "Deployments: agents as images, their..."
    ),
    "schedules": CommandEntry(
        "agentctl.commands.schedules", "app", AGENTS, "Messages to agents at set times: by a cron..."
    ),
    "chat": CommandEntry("agentctl.commands.chat", "chat", AGENTS, "Talk with an agent: each line that you..."),
    "runs": CommandEntry("agentctl.commands.runs", "runs", RUNS, "List runs, the newest first."),
    "show": CommandEntry("agentctl.commands.runs", "show", RUNS, "Show a run: its state, times, steps and..."),
    "cancel": CommandEntry("agentctl.commands.runs", "cancel", RUNS, "Cancel a run: at once while it is queued,..."),
    "retry": CommandEntry("agentctl.commands.runs", "retry", RUNS, "Put a failed run in the queue again, or..."),
    "explain": CommandEntry("agentctl.commands.runs", "explain", RUNS, "Say why a run waits, and about how long."),
    "queue": CommandEntry("agentctl.commands.runs", "queue", RUNS, "Show what is queued and running, and about..."),
    "queues": CommandEntry("agentctl.commands.runs", "queues", RUNS, "List the queues: what waits and runs in..."),
    "usage": CommandEntry("agentctl.commands.usage", "usage", RUNS, "Show how much of runs, events and files..."),
    "delete": CommandEntry("agentctl.commands.storage", "delete", RUNS, "Delete runs that are over, with their..."),
    "decisions": CommandEntry(
        "agentctl.commands.decisions", "decisions", RUNS, "List what your runs ask you, the newest..."
    ),
    "approve": CommandEntry(
        "agentctl.commands.decisions", "approve", RUNS, "Let a step be carried out, or a run go on..."
    ),
    "reject": CommandEntry("agentctl.commands.decisions", "reject", RUNS, "Refuse what a run asks for."),
    "answer": CommandEntry("agentctl.commands.decisions", "answer", RUNS, "Answer a question of a run."),
    "fork": CommandEntry(
        "agentctl.commands.derived_runs", "fork", RUNS, "Make a new run that goes on from a step of..."
    ),
    "replay": CommandEntry(
        "agentctl.commands.derived_runs", "replay", RUNS, "Show a run again from its records, and..."
    ),
    "plans": CommandEntry(
        "agentctl.commands.derived_runs", "plans", RUNS, "Show all plans that a run has had, and why..."
    ),
    "model-calls": CommandEntry(
        "agentctl.commands.derived_runs", "model_calls", RUNS, "List the calls of models that a run has..."
    ),
    "webhook-secret": CommandEntry(
        "agentctl.commands.webhooks", "webhook_secret", RUNS, "Show the secret that your webhooks are..."
    ),
    "hooks": CommandEntry("agentctl.commands.hooks", "app", RUNS, "Make addresses that others post to; what..."),
    "completion": CommandEntry("agentctl.completion", "completion", HERE, "Print the script by which a shell..."),
    "bulk": CommandEntry("agentctl.commands.bulk", "app", RUNS, "Do one thing to all runs that a filter..."),
    "export": CommandEntry(
        "agentctl.commands.exports", "export", RUNS, "Fetch a run as one ZIP archive: its plans,..."
    ),
    "exports": CommandEntry("agentctl.commands.exports", "app", RUNS, "List and delete the archives that `export`..."),
    "files": CommandEntry("agentctl.commands.files", "app", RUNS, "List, fetch and put the files of a run's..."),
    "dlq": CommandEntry(
        "agentctl.commands.dead_letters", "app", OPERATORS, "List, redrive and purge the runs that the..."
    ),
    "up": CommandEntry("agentctl.commands.up", "up", HERE, "Run everything on this machine until..."),
    "dev": CommandEntry("agentctl.commands.handlers", "dev", HERE, "Serve the handlers of a file at once, and..."),
    "demo": CommandEntry("agentctl.commands.demo", "demo", HERE, "Start everything in a temporary folder,..."),
    "token": CommandEntry(
        "agentctl.commands.admin", "tokens", OPERATORS, "Make, list and revoke the bearer tokens of..."
    ),
    "migrate": CommandEntry(
        "agentctl.commands.admin", "migrate", OPERATORS, "Bring the database's tables to the newest..."
    ),
    "services": CommandEntry(
        "agentctl.commands.services", "app", OPERATORS, "Always-on services: declare them, and see..."
    ),
    "ingress": CommandEntry("agentctl.commands.ingress", "app", OPERATORS, "The public way in: the tunnel's..."),
    "take-over-redis": CommandEntry(
        "agentctl.commands.admin", "take_over_redis", OPERATORS, "Make the queue in Redis this database's,..."
    ),
    "artifacts": CommandEntry(
        "agentctl.commands.artifacts", "app", RUNS, "See what agents keep from run to run, and..."
    ),
    "calibrate": CommandEntry(
        "agentctl.commands.calibrate", "calibrate", OPERATORS, "Find the rate of tokens at which agents..."
    ),
    "size": CommandEntry("agentctl.commands.size", "size", OPERATORS, "Say which form of the platform to run for..."),
    "models": CommandEntry("agentctl.commands.models", "app", OPERATORS, "What fits on a GPU."),
    "budget": CommandEntry("agentctl.commands.ledger", "budget", RUNS, "Show what is left to you of what limits..."),
    "secrets": CommandEntry("agentctl.commands.secrets", "app", RUNS, "Keep named values that steps may use..."),
    "gpus": CommandEntry("agentctl.commands.gpus", "app", OPERATORS, "GPU machines: what there is, what it..."),
    "audit": CommandEntry(
        "agentctl.commands.audit", "audit", OPERATORS, "Show who did what, the newest first: what..."
    ),
    "ledger": CommandEntry("agentctl.commands.ledger", "app", OPERATORS, "See and change who may spend how much."),
    "doctor": CommandEntry(
        "agentctl.commands.doctor", "doctor", OPERATORS, "Say which parts are found, which sandbox..."
    ),
    "settings": CommandEntry(
        "agentctl.commands.about", "settings", OPERATORS, "List every setting: its name in the..."
    ),
    "version": CommandEntry("agentctl.commands.about", "show_version", OPERATORS, "Show the version of this program."),
}
