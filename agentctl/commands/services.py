"""The commands about services: services apply, list, show, history, status, delete, compose."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.api.client import Client
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.services.compose import compose_of
from agentctl.services.declared import read_services
from agentctl.terminal.output import JsonFlag, Output, short_time
from agentctl.terminal.prompts import confirm

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name or its id.")]

app = typer.Typer(
    cls=Group, help="Always-on services: declare them, and see whether each answers.", no_args_is_help=True
)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON, as examples/services.yaml.")],
    json_output: JsonFlag = False,
) -> None:
    """Make or change the services of a file; those that it does not name stay as they are. For administrators."""
    output = Output(json_output)
    services = read_services(file)
    done = call(output, lambda client: _apply(client, services))
    if output.json:
        output.document(done)
        return
    for service in done:
        output.line(f"{service['name']}  {service['done']}")


@app.command("list")
def list_services(json_output: JsonFlag = False) -> None:
    """List the services: where each is, and whether it answers. For administrators."""
    output = Output(json_output)
    found = call(output, lambda client: client.services())
    if output.json:
        output.document(found)
        return
    rows = [
        [
            service["name"],
            f"{service['host']}:{service['port']}",
            _status(service),
            short_time(service["since"]),
            (service["container"] or {}).get("state", ""),
            service["public_endpoint"] or "",
            service["reason"],
        ]
        for service in found
    ]
    columns = ["NAME", "ADDRESS", "STATUS", "SINCE", "CONTAINER", "PUBLIC", "REASON"]
    output.table(columns, rows, folding=["REASON"], cutting=["PUBLIC"])


@app.command()
def show(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Show a service: what was declared, how it is, and why. For administrators."""
    output = Output(json_output)
    service = call(output, lambda client: client.service(name))
    if output.json:
        output.document(service)
        return
    check, container = service["check"], service["container"] or {}
    output.fields(
        {
            "name": service["name"],
            "id": service["id"],
            "address": f"{service['host']}:{service['port']}",
            "status": _status(service),
            "since": short_time(service["since"]),
            "why": service["explanation"],
            "check": f"{check['kind']}{'' if check['kind'] == 'tcp' else ' ' + check['path']}, every "
            f"{check['interval_seconds']:g} s, {check['timeout_seconds']:g} s at most",
            "latency": f"{service['latency_ms']:g} ms" if service["latency_ms"] is not None else "",
            "public": " ".join(filter(None, (service["public_endpoint"], service["public_path"]))),
            "container": " ".join(filter(None, (container.get("state"), container.get("image")))),
            "webhook": service["webhook_url"] or "",
        }
    )


@app.command()
def history(
    name: NameArgument,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """Show when a service went up and down, the newest first. For administrators."""
    output = Output(json_output)
    found = call(output, lambda client: client.service_history(name, limit=limit))
    if output.json:
        output.document(found)
        return
    rows = [[change["at"][:19].replace("T", " "), change["status"], change["reason"]] for change in found["changes"]]
    output.table(["AT (UTC)", "STATUS", "REASON"], rows, folding=["REASON"])


@app.command()
def status(json_output: JsonFlag = False) -> None:
    """Show which services answer. For everybody."""
    output = Output(json_output)
    page = call(output, lambda client: client.service_status())
    if output.json:
        output.document(page)
        return
    output.line(f"all together: {page['status']}")
    rows = [
        [each["name"], _status(each), short_time(each["since"]), each["public_endpoint"] or "", each["description"]]
        for each in page["services"]
    ]
    output.table(["NAME", "STATUS", "SINCE", "PUBLIC", "WHAT"], rows, folding=["WHAT"])


@app.command()
def delete(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for its container, whose host is gone.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete a service and its history, and stop its container. For administrators."""
    if not yes:
        confirm(f"Delete the service {name}?")
    output = Output(json_output)
    call(output, lambda client: client.delete_service(name, force=force))
    output.document({"deleted": name}) if output.json else output.line(
        f"{name} is deleted; where it has a container, it goes as soon as that is gone."
    )


@app.command()
def compose(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A file of services; else the API's.")] = None,
    bind: Annotated[str, typer.Option(metavar="ADDRESS", help="Where ports are published.")] = "127.0.0.1",
) -> None:
    """Print the Compose file of the services that name an image."""
    output = Output()
    services = read_services(file) if file is not None else call(output, lambda client: client.services())
    composed = compose_of(services, bind)
    if not composed["services"]:
        raise CommandError(ExitCode.USAGE, "No service names an image (`container.image`), so there is nothing to run.")
    for line in yaml.safe_dump(composed, sort_keys=False, width=1000).splitlines():
        output.line(line)


async def _apply(client: Client, services: list[JsonObject]) -> list[JsonObject]:
    before = {service["name"]: service["revision"] for service in await client.services()}
    done: list[JsonObject] = []
    for service in services:
        name, fields = service["name"], {key: value for key, value in service.items() if key != "name"}
        try:
            answer = await client.put_service(name, fields)
        except ApiError as error:
            made = f" Done before it: {', '.join(each['name'] for each in done)}." if done else ""
            raise CommandError(error.exit_code, f"{name}: {error.message}{made}") from None
        changed = "unchanged" if before.get(name) == answer["revision"] else "changed"
        done.append({"name": name, "done": changed if name in before else "made", "revision": answer["revision"]})
    return done


def _status(service: JsonObject) -> str:
    if service.get("deleting"):
        return "deleting"
    status = "flapping" if service["flapping"] else str(service["status"])
    return f"{status}, outdated" if service.get("outdated") else status
