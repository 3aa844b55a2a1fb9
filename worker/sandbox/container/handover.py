"""The files that a container's command gets: the workspace, made its own, and its input and variables as files."""

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from backplane.errors import Unavailable
from backplane.workspace.files import open_folder
from worker.sandbox.container.arguments import USER_ID


def variables_file(environment: Mapping[str, str], opened: ExitStack) -> Path:
    """What a shell reads to have these variables. `command`: so that a name which a shell keeps for itself is left out
    and does not end it."""
    lines = [f"command export {name}={shlex.quote(value)} || :\n" for name, value in environment.items()]
    return input_file(os.fsencode("".join(lines)), opened)


def input_file(data: bytes, opened: ExitStack) -> Path:
    """A file that only the command's user may read, gone with `opened`."""
    file = opened.enter_context(tempfile.NamedTemporaryFile(prefix="sandbox-input-"))  # noqa: SIM115 - it is one
    file.write(data)
    file.flush()
    if os.geteuid() == 0:
        os.fchown(file.fileno(), USER_ID, USER_ID)
    return Path(file.name)


def hand_over(folder: Path) -> None:
    """Make the command's user the owner of all in the folder. A worker that is not root runs the command as its own
    user, and need not."""
    try:
        if os.geteuid() != 0:
            os.stat(folder)
            return
        pending = [""]
        while pending:
            above = pending.pop()
            with open_folder(folder, above) as opened, os.scandir(opened) as entries:
                if os.fstat(opened).st_uid != USER_ID:
                    os.fchown(opened, USER_ID, USER_ID)
                pending += _hand_over_entries(entries, opened, above)
    except OSError as error:
        raise Unavailable(f"could not start a sandbox in {folder}: {error.strerror}", part="sandbox") from error


def _hand_over_entries(entries: Iterator["os.DirEntry[str]"], opened: int, above: str) -> Iterator[str]:
    """The folders among them, which are to be handed over themselves."""
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield f"{above}/{entry.name}" if above else entry.name
        elif entry.stat(follow_symlinks=False).st_uid != USER_ID:
            os.chown(entry.name, USER_ID, USER_ID, dir_fd=opened, follow_symlinks=False)
