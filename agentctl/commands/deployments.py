"""The commands about deployments: apply, list, show, scale, rollback, restart, pause, resume, approve, reject, delete,
revisions, events, logs, diff, explain."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.calls import call, listed
from agentctl.deployments.declared import read_deployment
from agentctl.deployments.named import deployment_of, whole_deployment_id
from agentctl.deployments.rollout import follow_deletion, follow_rollout, progress
from agentctl.exit_codes import ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, local_time, short_time
from agentctl.terminal.prompts import confirm
from backplane.domain.deployments import GRACE_MAX_SECONDS, DeploymentStatus
from backplane.domain.manifest_form import REPLICAS_MAX

DeploymentArgument = Annotated[
    str, typer.Argument(metavar="DEPLOYMENT", help="NAMESPACE/AGENT, AGENT, its id, or how that begins.")
]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Show the rollout until it has ended.")]
Timeout = Annotated[float, typer.Option(min=1, help="Of --wait, in seconds.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]

app = typer.Typer(
    cls=Group, help="Deployments: agents as images, their rollouts and what they print.", no_args_is_help=True
)


@app.command()
def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="YAML or JSON, as examples/deployment.yaml; - is stdin.")
    ],
    agent_id: Annotated[str | None, typer.Option(help="In place of the file's, or of the manifest's name.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="In place of the file's.")] = None,
    image: Annotated[str | None, typer.Option(help="In place of the file's.")] = None,
    wait: WaitFlag = False,
    timeout: Timeout = 900,
    json_output: JsonFlag = False,
) -> None:
    """Deploy an agent, or change the deployment that is there. The same file again changes nothing."""
    output = Output(json_output)
    declared = read_deployment(file, {"agent_id": agent_id, "namespace": namespace, "image": image})

    async def applied(client: Client) -> tuple[JsonObject, str, ExitCode]:
        there = await deployment_of(client, declared)
        seen = 0
        if there is None:
            done, what = await client.create_deployment(declared), "made"
        else:
            seen = await _last_event(client, there["id"]) if wait else 0
            change = {name: declared[name] for name in ("image", "manifest")}
            done = await client.change_deployment(there["id"], change)
            what = "unchanged" if done["revision"] == there["revision"] else "changed"
        if not output.json:
            output.line(f"{done['agent_id']} in {done['namespace']}: {what}, revision {done['revision']}, {done['id']}")
        code = ExitCode.OK
        if wait:
            code = await follow_rollout(client, output, done, seconds=timeout, seen=seen)
        return done, what, code

    done, what, code = call(output, applied)
    if not wait and output.json:
        output.document({**done, "done": what})
    elif not wait and done["reason"]:
        output.note(done["reason"])
    _exit(code)


@app.command("list")
def list_deployments(
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only those of this one.")] = None,
    status: Annotated[DeploymentStatus | None, typer.Option(help="Only those that are so.")] = None,
    agent_id: Annotated[str | None, typer.Option(help="Only those of this agent.")] = None,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait for an administrator.")] = False,
    limit: Limit = 50,
    json_output: JsonFlag = False,
) -> None:
    """List your deployments, the newest first; for an administrator those of all users."""
    output = Output(json_output)
    filters = {
        "namespace": namespace,
        "status": status.value if status else None,
        "agent_id": agent_id,
        "approval": "pending" if pending else None,
    }
    found = listed(
        output, lambda client, cursor, most: client.deployments(cursor, most, **filters), "deployments", limit
    )
    if output.json:
        output.document(found)
        return
    rows = [
        [
            f"{one['namespace']}/{one['agent_id']}",
            one["status"],
            f"{one['ready_replicas']}/{one['replicas']}",
            str(one["revision"]),
            one["image"],
            short_time(one["updated_at"]),
            one["reason"],
        ]
        for one in found
    ]
    columns = ["DEPLOYMENT", "STATUS", "READY", "REV", "IMAGE", "CHANGED", "REASON"]
    output.table(columns, rows, cutting=["IMAGE", "REASON"])


@app.command()
def show(deployment: DeploymentArgument, json_output: JsonFlag = False) -> None:
    """Show a deployment: what is wanted, what there is, and why the two differ."""
    output = Output(json_output)
    one = _on(output, deployment, lambda client, whole: client.deployment(whole))
    if output.json:
        output.document(one)
        return
    autoscaled, running = one["autoscaled"], one["running_revision"]
    between = f", between {autoscaled['min']} and {autoscaled['max']} by an autoscaler" if autoscaled else ""
    older = "" if running in (None, one["revision"]) else f", and {running} runs"
    output.fields(
        {
            "id": one["id"],
            "deployment": f"{one['namespace']}/{one['agent_id']}",
            "status": one["status"],
            "why": one["reason"],
            "replicas": f"{one['ready_replicas']} of {one['replicas']} ready{between}",
            "revision": f"{one['revision']}{older}",
            "approval": "" if one["approval"] == "not_needed" else one["approval"],
            "image": one["image"],
            "access tier": one["access_tier"],
            "auto rollback": "yes" if one["auto_rollback"] else "no",
            "paused": "yes" if one["paused"] else "",
            "drift": f"{len(one['drift'])} place(s); agentctl deployments diff" if one["drift"] else "",
            "url": one["url"],
            "created": local_time(one["created_at"]),
            "changed": local_time(one["updated_at"]),
            "deleting": local_time(one["deleted_at"]),
        }
    )


@app.command()
def scale(
    deployment: DeploymentArgument,
    replicas: Annotated[
        int, typer.Argument(metavar="REPLICAS", min=0, max=REPLICAS_MAX, help="So many are wanted; 0 stops it.")
    ],
    wait: WaitFlag = False,
    timeout: Timeout = 900,
    json_output: JsonFlag = False,
) -> None:
    """Set the number of replicas by hand."""
    _act(Output(json_output), deployment, "scale", {"replicas": replicas}, timeout if wait else None)


@app.command()
def rollback(
    deployment: DeploymentArgument,
    revision: Annotated[int | None, typer.Option(min=1, help="Else the last one that has another content.")] = None,
    wait: WaitFlag = False,
    timeout: Timeout = 900,
    json_output: JsonFlag = False,
) -> None:
    """Deploy the content of an older revision, as a new one."""
    body = {} if revision is None else {"revision": revision}
    _act(Output(json_output), deployment, "rollback", body, timeout if wait else None)


@app.command()
def restart(
    deployment: DeploymentArgument, wait: WaitFlag = False, timeout: Timeout = 900, json_output: JsonFlag = False
) -> None:
    """Start all replicas anew, a few at a time."""
    _act(Output(json_output), deployment, "restart", None, timeout if wait else None)


@app.command()
def pause(deployment: DeploymentArgument, json_output: JsonFlag = False) -> None:
    """Leave what runs as it is, whatever is changed meanwhile."""
    _act(Output(json_output), deployment, "pause", None, None)


@app.command()
def resume(
    deployment: DeploymentArgument, wait: WaitFlag = False, timeout: Timeout = 900, json_output: JsonFlag = False
) -> None:
    """Let a paused deployment become what was wanted meanwhile."""
    _act(Output(json_output), deployment, "resume", None, timeout if wait else None)


@app.command()
def approve(
    deployment: DeploymentArgument,
    revision: Annotated[int, typer.Option(min=1, help="The revision that you looked at; another one is refused.")],
    wait: WaitFlag = False,
    timeout: Timeout = 900,
    json_output: JsonFlag = False,
) -> None:
    """Let a revision run that waits for approval. For administrators."""
    decision = {"decision": "approve", "revision": revision}
    _act(Output(json_output), deployment, "decision", decision, timeout if wait else None)


@app.command()
def reject(
    deployment: DeploymentArgument,
    reason: Annotated[str, typer.Option(help="Its user reads it.")] = "",
    revision: Annotated[int | None, typer.Option(min=1, help="The revision that is meant; else the newest.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Refuse the newest revision; what ran before goes on. For administrators."""
    meant = {} if revision is None else {"revision": revision}
    _act(Output(json_output), deployment, "decision", {"decision": "reject", "reason": reason, **meant}, None)


@app.command()
def delete(
    deployment: DeploymentArgument,
    grace: Annotated[int, typer.Option(min=0, max=GRACE_MAX_SECONDS, help="Its replicas' time to end, in s.")] = 30,
    force: Annotated[bool, typer.Option("--force", help="The target is away for good: leave there what is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing of it is left.")] = False,
    timeout: Timeout = 900,
    json_output: JsonFlag = False,
) -> None:
    """Delete a deployment with its revisions, events and log."""
    output = Output(json_output)
    whole = call(output, lambda client: whole_deployment_id(client, deployment))
    if not yes:
        confirm(f"Delete the deployment {deployment}?")

    async def deleted(client: Client) -> tuple[JsonObject, ExitCode]:
        done = await client.delete_deployment(whole, grace_seconds=grace, force=force)
        code = ExitCode.OK
        if wait and not force:
            code = await follow_deletion(client, output, whole, seconds=timeout)
        return done, code

    done, code = call(output, deleted)
    if output.json:
        output.document(done)
    elif force:
        output.line(f"{deployment} is forgotten here. What may be left: {done['left']}.")
    else:
        output.line(f"{deployment} is {'gone' if wait and code is ExitCode.OK else 'being deleted'}.")
    _exit(code)


@app.command()
def revisions(deployment: DeploymentArgument, limit: Limit = 20, json_output: JsonFlag = False) -> None:
    """List what was wanted and what became of it, the newest first."""
    output = Output(json_output)
    found = _pages(output, deployment, "revisions", lambda client: client.revisions, limit)
    if output.json:
        output.document(found)
        return
    rows = [
        [
            str(one["number"]),
            short_time(one["created_at"]),
            one["outcome"],
            "" if one["approval"] == "not_needed" else one["approval"],
            one["image"],
            one["cause"],
            one["outcome_reason"],
        ]
        for one in found
    ]
    columns = ["REV", "MADE", "OUTCOME", "APPROVAL", "IMAGE", "CAUSE", "REASON"]
    output.table(columns, rows, cutting=["IMAGE", "CAUSE", "REASON"])


@app.command()
def events(deployment: DeploymentArgument, limit: Limit = 50, json_output: JsonFlag = False) -> None:
    """List what was asked and what happened, the newest first."""
    output = Output(json_output)
    found = _pages(output, deployment, "events", lambda client: client.deployment_events, limit)
    if output.json:
        output.document(found)
        return
    rows = [[local_time(one["at"]), one["type"], str(one["revision"]), one["message"]] for one in found]
    output.table(["AT", "EVENT", "REV", "WHAT"], rows, folding=["WHAT"])


@app.command()
def logs(
    deployment: DeploymentArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they come.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=10_000, help="Begin with so many of the newest lines.")] = 100,
    json_output: JsonFlag = False,
) -> None:
    """Show what the replicas print."""
    output = Output(json_output)

    async def shown(client: Client) -> None:
        whole = await whole_deployment_id(client, deployment)
        async for event in client.deployment_logs(whole, tail=tail, follow=follow):
            _show_line(output, event)

    try:
        call(output, shown)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@app.command()
def diff(deployment: DeploymentArgument, json_output: JsonFlag = False) -> None:
    """Show what the target has otherwise than it was declared."""
    output = Output(json_output)
    found = _on(output, deployment, lambda client, whole: client.deployment_drift(whole))
    if output.json:
        output.document(found)
    elif found["looked_at"] is None:
        output.line("No controller has looked yet.")
    else:
        for line in found["drift"] or [f"Nothing differs, as of {local_time(found['looked_at'])}."]:
            output.line(line)


@app.command()
def explain(deployment: DeploymentArgument, json_output: JsonFlag = False) -> None:
    """Say why a deployment is not as wanted."""
    output = Output(json_output)
    found = _on(output, deployment, lambda client, whole: client.explain_deployment(whole))
    output.document(found) if output.json else output.line(found["text"])


def _on(output: Output, given: str, work: Callable[[Client, str], Awaitable[JsonObject]]) -> JsonObject:
    async def resolved(client: Client) -> JsonObject:
        return await work(client, await whole_deployment_id(client, given))

    return call(output, resolved)


def _pages(
    output: Output, given: str, items: str, calls: Callable[[Client], Callable[..., Awaitable[JsonObject]]], limit: int
) -> list[JsonObject]:
    whole = call(output, lambda client: whole_deployment_id(client, given))
    fetch: Any = lambda client, cursor, most: calls(client)(whole, cursor, most)  # noqa: E731
    return listed(output, fetch, items, limit)


def _act(output: Output, given: str, action: str, body: JsonObject | None, seconds: float | None) -> None:
    """`seconds`: how long the rollout is followed; None: not at all."""

    async def acted(client: Client) -> tuple[JsonObject, ExitCode]:
        whole = await whole_deployment_id(client, given)
        seen = 0 if seconds is None else await _last_event(client, whole)
        is_repeatable = action not in ("rollback", "restart")
        done = await client.act_on_deployment(action, whole, body, repeatable=is_repeatable)
        if seconds is None:
            return done, ExitCode.OK
        return done, await follow_rollout(client, output, done, seconds=seconds, seen=seen)

    done, code = call(output, acted)
    if seconds is None:
        output.document(done) if output.json else output.line(f"{given}: {progress(done)}")
    _exit(code)


async def _last_event(client: Client, deployment_id: str) -> int:
    found = (await client.deployment_events(deployment_id, limit=1))["events"]
    return int(found[0]["number"]) if found else 0


def _show_line(output: Output, event: JsonObject) -> None:
    data = event["data"]
    if output.json:
        output.json_line(event)
    elif event["type"] == "log":
        if data["left_out"]:
            output.note(f"({data['left_out']} lines before came too fast, and are not kept)")
        output.line(f"{data['replica']}  {data['line']}")
    elif event["type"] == "gap":
        output.note(f"(lines {data['after'] + 1} to {data['before'] - 1}: {data['reason']})")
    else:
        output.note(f"({data['reason']})")


def _exit(code: ExitCode) -> None:
    if code is not ExitCode.OK:
        raise typer.Exit(code)
