"""The commands about what agents keep from run to run: artifacts list and get for everybody; log, files, show and
rollback for admins."""

from typing import Annotated

import typer

from agentctl.calls import call, listed
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, short_time
from backplane.domain.sizes import readable_size

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="Name of the agent, as its runs give it.")]
User = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.")]
Commit = Annotated[str, typer.Argument(metavar="COMMIT", help="Id of a commit, or how it begins (7 digits or more).")]
FilePath = Annotated[str, typer.Argument(metavar="PATH", help="Path of the artifact.")]

app = typer.Typer(
    cls=Group, help="See what agents keep from run to run, and take it back (admins).", no_args_is_help=True
)


@app.command("list")
def list_artifacts(agent: Agent = "default", json_output: JsonFlag = False) -> None:
    """List the files that an agent of yours keeps."""
    output = Output(json_output)
    _print_files(output, call(output, lambda client: client.artifacts(agent))["artifacts"])


@app.command()
def get(agent: Agent, path: FilePath) -> None:
    """Print a file that an agent of yours keeps."""
    _print_bytes(call(Output(), lambda client: client.artifact(agent, path)))


@app.command()
def log(
    user: User,
    agent: Agent,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """List the changes of an agent's files, the newest first."""
    output = Output(json_output)
    changes = listed(
        output, lambda client, cursor, most: client.artifact_log(user, agent, cursor, most), "changes", limit
    )
    if output.json:
        output.document(changes)
        return
    rows = [
        [
            change["commit"],
            short_time(change["at"]),
            change["run_id"] or f"by {change['administrator'] or 'nobody'}",
            change["step_id"] or "",
            change["summary"],
        ]
        for change in changes
    ]
    output.table(["COMMIT", "AT", "RUN", "STEP", "WHAT"], rows, folding=["WHAT"])


@app.command()
def files(user: User, agent: Agent, commit: Commit, json_output: JsonFlag = False) -> None:
    """List an agent's files as they were after a commit."""
    output = Output(json_output)
    _print_files(output, call(output, lambda client: client.artifacts_at(user, agent, commit))["artifacts"])


@app.command()
def show(user: User, agent: Agent, commit: Commit, path: FilePath) -> None:
    """Print a file as it was after a commit."""
    _print_bytes(call(Output(), lambda client: client.artifact_at(user, agent, commit, path)))


@app.command()
def rollback(user: User, agent: Agent, commit: Commit, json_output: JsonFlag = False) -> None:
    """Make an agent's files what they were after a commit. Nothing is lost: it is one more entry in the log."""
    output = Output(json_output)
    answer = call(output, lambda client: client.roll_back_artifacts(user, agent, commit))
    if output.json:
        output.document(answer)
    elif answer["commit"]:
        output.fields({"rolled back to": commit, "as commit": answer["commit"]})
    else:
        output.line("The files are so already.")


def _print_files(output: Output, files: list[dict[str, object]]) -> None:
    if output.json:
        output.document(files)
        return
    rows = [[str(file["path"]), readable_size(int(str(file["size"])))] for file in files]
    output.table(["PATH", "SIZE"], rows, folding=["PATH"])


def _print_bytes(data: bytes) -> None:
    sink = Output().sink()
    sink.write(data)
    sink.flush()
