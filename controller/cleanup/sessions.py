"""Removes what old sessions have left on this machine, or in the cluster: checkouts, containers, volumes and Jobs.

The worker that makes such a thing removes it. This is for what was left all the same: the worker was killed, the
machine was stopped, a removal failed. A thing is old at SESSION_MAX_SECONDS, but a run may last longer, so age alone
decides nothing: what belongs to a run that is carried out in the same generation stays, and the rest goes only if it is
there, and is needed by nobody, a second time a lease later. Doing this twice at once does no harm.

Every controller looks, now and then; a look that is lost is made up for by the next. What lies on a machine is removed
by the controllers of that machine.
"""

import asyncio
import fcntl
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from backplane.containers.program import ask
from backplane.domain.runs import Ownership
from backplane.domain.sandbox_labels import CREATED, GENERATION, PART, RUN, SANDBOX, SCRATCH_PREFIX
from backplane.errors import PlatformError, Unavailable
from backplane.process.abandoned import end_sandboxes_of
from backplane.process.tasks import in_thread
from backplane.settings import Settings, fixed
from backplane.store import Runs
from backplane.workspace.files import OPEN_FOLDER, empty, make_accessible, open_folder

ENGINES = ("podman", "docker")
ENGINE = "container engine"
"""The part that does not answer, in errors."""
INSPECTED_AT_ONCE = 100

_CHECKOUT = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([0-9]{1,18})")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a session made. `name` is what its place knows it by, and `identity` distinguishes it from another
    one of that name. Without a run it is nobody's; without a generation, it belongs to any worker of its run."""

    kind: str
    name: str
    identity: str
    run_id: str
    generation: int | None
    age_seconds: float = field(compare=False)

    def is_needed(self, ownerships: Mapping[str, Ownership]) -> bool:
        owner = ownerships.get(self.run_id)
        return owner is not None and owner.is_of(owner.generation if self.generation is None else self.generation)


class SessionPlace(ABC):
    """Where sessions leave things. Both calls raise PlatformError."""

    @abstractmethod
    async def find(self) -> list[Leftover]:
        """All that is there, of whatever age."""

    @abstractmethod
    async def remove(self, leftover: Leftover) -> bool:
        """Remove the leftover. Returns whether it was removed; it is not if it has changed, or is in use after all."""


async def sweep(
    places: Sequence[SessionPlace], runs: Runs, *, session_seconds: float, lease_seconds: float
) -> Mapping[str, int]:
    """Remove what is old and needed by nobody; how many of each kind. A place that fails is logged and passed over.

    Raises Unavailable when the database does not answer: then nothing is known, and nothing is removed.
    """
    removed = Counter[str]()
    if not (doubtful := await _old_and_unneeded(places, runs, session_seconds)):
        return removed
    await asyncio.sleep(lease_seconds)
    still = await _old_and_unneeded(places, runs, session_seconds)
    for leftover in still.keys() & doubtful.keys():
        try:
            removed[leftover.kind] += await still[leftover].remove(leftover)
        except PlatformError as error:
            log.warning(
                "cannot remove what a session left", what=leftover.kind, name=leftover.name, error=error.message
            )
    found = {kind: count for kind, count in removed.items() if count}
    if found:
        log.info("removed what old sessions left", **found)
    return found


async def _old_and_unneeded(
    places: Sequence[SessionPlace], runs: Runs, session_seconds: float
) -> dict[Leftover, SessionPlace]:
    old: dict[Leftover, SessionPlace] = {}
    for place in places:
        try:
            old |= {leftover: place for leftover in await place.find() if leftover.age_seconds > session_seconds}
        except PlatformError as error:
            log.warning("cannot look for what sessions left", where=type(place).__name__, error=error.message)
    ownerships = await runs.ownerships({leftover.run_id for leftover in old if leftover.run_id}) if old else {}
    return {leftover: place for leftover, place in old.items() if not leftover.is_needed(ownerships)}


class CheckoutFolders(SessionPlace):
    """The folders of workers below `parent`, each locked for as long as its worker lives.

    One that is not locked goes as a whole. In one that is, checkouts go whose run the worker no longer carries out:
    what a removal of its own has left.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    async def find(self) -> list[Leftover]:
        with _disk_translated():
            return await in_thread(lambda: list(self._find()))

    async def remove(self, leftover: Leftover) -> bool:
        with _disk_translated():
            try:
                return await in_thread(self._remove, leftover)
            except FileNotFoundError:  # its worker was quicker
                return False

    def _find(self) -> Iterator[Leftover]:
        for path in self._parent.glob(f"{SCRATCH_PREFIX}*"):
            with _opened(path) as folder:
                if folder is None:
                    continue
                if _is_locked(folder):
                    yield from _checkouts(folder, path.name)
                else:
                    yield _folder_left(path.name, os.fstat(folder))

    def _remove(self, leftover: Leftover) -> bool:
        worker, _, checkout = leftover.name.partition("/")
        path = self._parent / worker
        with _opened(path) as folder:
            if folder is None:
                return False
            if checkout:
                return leftover in _checkouts(folder, worker) and _remove_folder(checkout, folder)
            if leftover != _folder_left(worker, os.fstat(folder)) or _is_locked(folder):
                return False
            # Its lock is ours from here to the end of this block.
            end_sandboxes_of(path)
            empty(folder)
            path.rmdir()
            return True


def _folder_left(name: str, status: os.stat_result, run_id: str = "", generation: int | None = None) -> Leftover:
    identity = f"{status.st_dev}:{status.st_ino}"
    return Leftover("folder", name, identity, run_id, generation, time.time() - status.st_mtime)


def _checkouts(folder: int, worker: str) -> list[Leftover]:
    found = []
    for name in os.listdir(folder):
        if named := _CHECKOUT.fullmatch(name):
            with suppress(FileNotFoundError):
                status = os.lstat(name, dir_fd=folder)
                if stat.S_ISDIR(status.st_mode):
                    found.append(_folder_left(f"{worker}/{name}", status, named[1], int(named[2])))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of a folder of this user's; None for anything else, and for a link."""
    try:
        folder = os.open(path, OPEN_FOLDER)
    except OSError:
        yield None
        return
    try:
        yield folder if os.fstat(folder).st_uid == os.getuid() else None
    finally:
        os.close(folder)


def _is_locked(folder: int) -> bool:
    """By another; otherwise it is locked now for as long as this descriptor is open."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove_folder(name: str, parent: int) -> bool:
    """No link in it is followed, and nothing outside of it is touched."""
    make_accessible(name, parent, os.lstat(name, dir_fd=parent).st_mode)
    with open_folder(parent, name) as folder:
        empty(folder)
    os.rmdir(name, dir_fd=parent)
    return True


@contextmanager
def _disk_translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the disk refuses: {error.strerror or error}", part="scratch") from error


class Containers(SessionPlace):
    """Containers and volumes of a Docker or Podman on this machine. `engine`: its program, and options of its own."""

    def __init__(self, engine: Sequence[str]) -> None:
        self._engine = tuple(engine)

    async def find(self) -> list[Leftover]:
        found = []
        everything = ("--quiet", "--filter", f"label={PART}={SANDBOX}")
        for kind, listing, inspecting, labels in (
            ("container", ("ps", "--all", "--no-trunc"), ("container", "inspect"), "{{.Id}} {{json .Config.Labels}}"),
            ("volume", ("volume", "ls"), ("volume", "inspect"), "{{.Name}} {{json .Labels}}"),
        ):
            names = (await self._ask(*listing, *everything)).split()
            for start in range(0, len(names), INSPECTED_AT_ONCE):
                batch = names[start : start + INSPECTED_AT_ONCE]
                # Those that have gone meanwhile are an error, and the others are listed all the same.
                printed = await self._ask(*inspecting, "--format", labels, *batch, must_succeed=False)
                found += [left for line in printed.splitlines() if (left := labelled(kind, line, time.time()))]
        return found

    async def remove(self, leftover: Leftover) -> bool:
        if leftover.kind == "volume":
            await self._ask("volume", "rm", leftover.name)
        else:
            # Otherwise Podman waits ten seconds for one that is asked to end.
            await self._ask("kill", leftover.name, must_succeed=False)
            await self._ask("rm", "--force", "--volumes", leftover.name)
        return True

    async def _ask(self, *arguments: str, must_succeed: bool = True) -> str:
        answer = await ask([*self._engine, *arguments], part=ENGINE)
        if answer.code and must_succeed:
            message = f"{self._engine[0]} {arguments[0]} fails: {answer.error.strip()[-500:]}"
            raise Unavailable(message, part=ENGINE)
        return answer.output


def labelled(kind: str, line: str, now: float) -> Leftover | None:
    """A container or volume from its name and its labels as JSON; None when its labels are not those of a session."""
    name, _, text = line.partition(" ")
    try:
        labels: Mapping[str, str] = json.loads(text) or {}
        created = float(labels[CREATED])
        generation = int(labels[GENERATION]) if GENERATION in labels else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Leftover(kind, name, labels[CREATED], labels.get(RUN, ""), generation, now - created)


async def find_engine(wanted: str) -> list[str]:
    """`wanted` in its words, as a shell reads them, or the first engine that works. Raises Unavailable when there is
    none."""
    for words in [shlex.split(wanted)] if wanted else [[engine] for engine in ENGINES]:
        if shutil.which(words[0]) and (await ask([*words, "version"], part=ENGINE)).code == 0:
            return words
    raise Unavailable(
        f"{wanted or ' and '.join(ENGINES)} cannot be used from here; install one, or let this user use it",
        part=ENGINE,
    )


async def places_of(settings: Settings) -> list[SessionPlace]:
    """Where sessions of this platform leave things, as far as this machine can reach it."""
    places: list[SessionPlace] = [CheckoutFolders(Path(tempfile.gettempdir()))]
    match settings.sandbox:
        case "kubernetes":
            # The HTTP library behind it takes 0.2 s and 25 MB.
            from controller.cleanup.sandbox_jobs import JobPlace  # noqa: PLC0415

            places.append(JobPlace(settings.sandbox_namespace))
        case "container":
            try:
                places.append(Containers(await find_engine(settings.sandbox_container_engine)))
            except Unavailable as error:
                log.warning("cannot look for containers that sessions left", error=error.message)
    return places


async def remove_old_sessions(settings: Settings, runs: Runs) -> Mapping[str, int]:
    """One sweep as the settings say; how many of each kind were removed. Raises Unavailable."""
    return await sweep(
        await places_of(settings),
        runs,
        session_seconds=settings.session_max_seconds,
        lease_seconds=settings.lease_seconds,
    )


class SweepTimer:
    """A sweep at the start, and another 30 minutes after each, until it is cancelled. `removed` takes a kind
    of thing and how many of it a sweep removed."""

    def __init__(self, settings: Settings, runs: Runs, removed: Callable[[str, int], None]) -> None:
        self._settings = settings
        self._runs = runs
        self._removed = removed

    async def run(self) -> None:
        while True:
            try:
                for kind, count in (await remove_old_sessions(self._settings, self._runs)).items():
                    self._removed(kind, count)
            except PlatformError as error:
                log.warning("old sessions are not removed", error=error.message)
            await asyncio.sleep(fixed.SESSION_CHECK_SECONDS)
