"""Give a run the files that it goes on from: those of a fork or a replay, or what they were before a step.

`Run.restore` names the run whose files they are. What each file was is known from what that run began with and from
what the steps in this run's own journal left (`StepRecord.files`), in the order in which they ended. A file is looked
for in that run, and then in those where that run's files came from.

A new run keeps the files that its user has put there before it was started; a run that goes back to a step of its own
loses what came after it, which is kept as versions first.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from backplane.domain.runs import Run
from backplane.domain.steps import StepRecord
from backplane.errors import FilesGone, NotFound
from backplane.process.retrying import WaitRules
from backplane.process.tasks import for_each
from backplane.workspace.attributes import nanoseconds
from backplane.workspace.base import Beginning, FileInfo, Versions, Workspace, WorkspaceStore
from worker.files.versioned import is_log, state_after

_AT_ONCE = 16
_NAMED = 5
"""Missing files that an error names."""


async def restore(
    workspaces: WorkspaceStore,
    workspace: Workspace,
    run: Run,
    journal: Sequence[StepRecord],
    *,
    ensure_ours: Callable[[], Awaitable[None]],
    log_line: Callable[[str], None],
    waits: WaitRules,
) -> None:
    """Carry out `run.restore`, which is not None. Call it before anything else is done with the files, and write
    `RunTransaction.restored` afterwards. It may be done twice, also after a crash in the middle: the result is the
    same.

    `workspace` is the run's own: it waits while its store is away, and is not yet a VersionedWorkspace. `ensure_ours`
    raises Superseded when another worker has the run. `log_line` is called with lines for the run's log. `waits`: how a
    store that is away is waited for. Raises FilesGone when a file cannot be had any more, and PartRefuses when the
    store has refused for too long.
    """
    assert run.restore is not None
    source = str(run.restore["run_id"])
    restoring = _Restoring(workspaces, workspace, run, source, ensure_ours, waits)
    beginning = await restoring.beginning(source)
    if beginning is None:
        if source == run.id:
            return  # it has never changed a file
        beginning = _beginning_of(await restoring.listed(workspaces.workspace(run.user_id, source)))
    if source == run.id:
        changed = await restoring.go_back(state_after(beginning.files, journal), beginning.runs)
        if changed:
            log_line(f"{changed} file{' is' if changed == 1 else 's are'} as before what is to be done again")
    else:
        came_from = tuple(dict.fromkeys((source, *beginning.runs)))
        there = await restoring.listed(workspace)
        changed_since = {path for record in journal for path in record.files or ()}
        own = _beginning_of({path: file for path, file in there.items() if path not in changed_since})
        times = {**beginning.times, **own.times}
        await restoring.begin(Beginning({**beginning.files, **own.files}, came_from, times))
        state = state_after(beginning.files, journal)
        brought = await restoring.bring([(path, etag) for path, etag in state.items() if path not in there], came_from)
        if brought:
            log_line(f"{brought} file{'' if brought == 1 else 's'} taken over from run {source}")


def _beginning_of(files: Mapping[str, FileInfo]) -> Beginning:
    return Beginning(
        {path: file.etag for path, file in files.items()},
        times={path: nanoseconds(file.modified_at) for path, file in files.items()},
    )


class _Restoring:
    def __init__(
        self,
        workspaces: WorkspaceStore,
        workspace: Workspace,
        run: Run,
        source: str,
        ensure_ours: Callable[[], Awaitable[None]],
        waits: WaitRules,
    ) -> None:
        self._workspaces = workspaces
        self._workspace = workspace
        self._run = run
        self._source = source
        self._ensure_ours = ensure_ours
        self._waits = waits

    async def beginning(self, run_id: str) -> Beginning | None:
        return await self._waits.until_available(self._versions(run_id).beginning)

    async def begin(self, beginning: Beginning) -> None:
        await self._waits.until_available(lambda: self._versions(self._run.id).begin(beginning))

    async def listed(self, workspace: Workspace) -> dict[str, FileInfo]:
        return {file.path: file for file in await self._waits.until_available(workspace.list) if not is_log(file.path)}

    async def bring(self, wanted: Sequence[tuple[str, str]], came_from: Sequence[str]) -> int:
        """Bring the files into a new run, whose user may have put files there before. Returns their number."""
        await self._bring_back(wanted, came_from)
        return len(wanted)

    async def go_back(self, state: dict[str, str], came_from: Sequence[str]) -> int:
        """Bring the run's own files back to `state`. Returns the number of changed files."""
        there = await self.listed(self._workspace)
        wanted = [(path, etag) for path, etag in state.items() if path not in there or there[path].etag != etag]
        replaced = [there[path] for path, _ in wanted if path in there]
        removed = [file for path, file in there.items() if path not in state]
        await for_each([*replaced, *removed], self._keep, parallel=_AT_ONCE)
        await for_each(removed, self._remove, parallel=_AT_ONCE)
        await self._bring_back(wanted, (self._run.id, *came_from))
        return len(wanted) + len(removed)

    async def _bring_back(self, wanted: Sequence[tuple[str, str]], came_from: Sequence[str]) -> None:
        missing: list[str] = []

        async def one(item: tuple[str, str]) -> None:
            path, etag = item
            await self._ensure_ours()
            for run_id in came_from:
                if await self._waits.until_available(
                    partial(self._versions(run_id).bring_back, path, etag, self._run.id)
                ):
                    return
            missing.append(path)

        await for_each(wanted, one, parallel=_AT_ONCE)
        if missing:
            named = ", ".join(sorted(missing)[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise FilesGone(
                f"{named}{more}: what they were is not kept any more (they were replaced from outside, "
                "WORKSPACE_VERSIONS_MAX_BYTES was reached, or the other run's files have been removed). Fork from a "
                "later step, or put the files into a new run yourself."
            )

    async def _keep(self, file: FileInfo) -> None:
        try:
            await self._waits.until_available(lambda: self._versions(self._run.id).keep(file.path, file.etag))
        except NotFound:
            return  # replaced from outside at this moment

    async def _remove(self, file: FileInfo) -> None:
        try:
            await self._workspace.delete(file.path)
        except NotFound:
            return

    def _versions(self, run_id: str) -> Versions:
        return self._workspaces.versions(self._run.user_id, run_id)
