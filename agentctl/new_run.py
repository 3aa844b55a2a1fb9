"""What a person gives a new run on the command line, read and checked: prompt, plan, metadata, files."""

import json
import os
import posixpath
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.plan_file import read_plan


def new_run_of(
    prompt: str | None,
    plan: Path | None,
    timeout: int | None,
    max_retries: int | None,
    metadata: list[str],
    *,
    carrier: Mapping[str, str | None] | None = None,
    given: str | None = None,
) -> JsonObject:
    """The body of the create call, without its action. `carrier`: what carries it out in place of a plan, `handler` or
    `deployment` and its name. `given`: the carrier's input, as `input_of` reads it. Raises CommandError(USAGE)."""
    carriers = {kind: name for kind, name in (carrier or {}).items() if name is not None}
    if prompt is None and plan is None and not carriers:
        raise CommandError(
            ExitCode.USAGE,
            "Nothing to do: give a prompt, a file, - for standard input, --plan FILE, --handler NAME, or "
            "--deployment NAME.",
        )
    if given is not None and not carriers:
        raise CommandError(
            ExitCode.USAGE, "--input is for a handler or a deployed agent: name it with --handler or --deployment."
        )
    body: JsonObject = {}
    if prompt is not None:
        body["prompt"] = text_of(prompt)
    elif plan is not None:
        body["prompt"] = f"Carry out {plan.name}."
    if carriers:
        body |= {**carriers, "input": None if given is None else input_of(given)}
    if plan is not None:
        body["plan"] = read_plan(plan)
    if timeout is not None:
        body["timeout_seconds"] = timeout
    if max_retries is not None:
        body["max_retries"] = max_retries
    if metadata:
        body["metadata"] = metadata_of(metadata)
    return body


def metadata_of(given: list[str]) -> JsonObject:
    """Of pairs KEY=VALUE. Raises CommandError(USAGE)."""
    pairs = [pair.partition("=") for pair in given]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise CommandError(ExitCode.USAGE, f"--metadata wants KEY=VALUE, not {wrong[0]!r}.")
    if twice := [name for at, (name, _, _) in enumerate(pairs) if name in {other[0] for other in pairs[:at]}]:
        raise CommandError(ExitCode.USAGE, f"--metadata has {twice[0]!r} twice; keep one.")
    return {name: value for name, _, value in pairs}


def input_of(given: str, option: str = "--input") -> Any:
    """The JSON itself, or that of the file behind an @. Raises CommandError(USAGE)."""
    where, text = option, given
    if given.startswith("@"):
        where, file = f"{option} {given}", Path(given[1:])
        try:
            text = sys.stdin.read() if given == "@-" else file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(ExitCode.USAGE, f"{where} cannot be read: {error}.") from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(
            ExitCode.USAGE, f"{where} is no JSON: {error}. A text needs quotes inside: {option} '\"text\"'."
        ) from None


def text_of(prompt: str) -> str:
    """The prompt itself, the file that it names, or standard input. Raises CommandError(USAGE)."""
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        if "\n" not in prompt and os.path.isfile(prompt):
            return Path(prompt).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(ExitCode.USAGE, f"The prompt is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"The prompt cannot be read: {error}.") from None
    if os.path.isdir(prompt):
        raise CommandError(ExitCode.USAGE, f"{prompt} is a folder; give a text, a file of it, or - for standard input.")
    if prompt.endswith((".md", ".txt")) and not any(map(str.isspace, prompt)):
        raise CommandError(ExitCode.USAGE, f"There is no file {prompt}.")
    return prompt


def uploads_of(arguments: list[str]) -> list[tuple[Path, str]]:
    """The same of several. Raises CommandError(USAGE) also where two of them have one path in the workspace."""
    first: dict[str, str] = {}
    uploads = []
    for argument in arguments:
        local, name = upload_of(argument)
        path = posixpath.normpath(name)
        if path in first:
            message = (
                f"--file has {path!r} twice, from {first[path]!r} and {argument!r}: keep one, or name another path."
            )
            raise CommandError(ExitCode.USAGE, message)
        first[path] = argument
        uploads.append((local, name))
    return uploads


def upload_of(argument: str) -> tuple[Path, str]:
    """`PATH` or `PATH:NAME` as the local file and its name in the workspace. Raises CommandError(USAGE)."""
    local, name = Path(argument), ""
    if not local.exists() and ":" in argument:
        before, _, name = argument.rpartition(":")
        local = Path(before)
    if not local.is_file():
        kind = "is no file" if local.exists() else "does not exist"
        raise CommandError(ExitCode.USAGE, f"--file {argument}: {local} {kind}.")
    if not name:
        name = local.name if local.is_absolute() or ".." in local.parts else local.as_posix()
    return local, name


def opened_file(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{file} cannot be read: {error}.") from None
