"""Each step's end is bound to what it changed, and what was can be had again."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backplane.domain.runs import Run
from backplane.domain.steps import StepRecord, StepStatus
from backplane.domain.users import Tier, User
from backplane.errors import FilesGone, QuotaExceeded, Superseded
from backplane.process.retrying import WaitRules
from backplane.workspace.attributes import nanoseconds, stored_path_bytes
from backplane.workspace.base import Beginning, FileInfo, Workspace, WorkspaceStore
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.quota import Quota
from tests.submitted import new_run
from worker.files.restore import restore
from worker.files.versioned import EarlierSteps, VersionedWorkspace, state_after

USER = User("user", "ada", Tier.STANDARD)
QUOTA = Quota(max_bytes=100_000, max_files=100, max_depth=8)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[WorkspaceStore]:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    yield store
    await store.close()


def record(number: int, files: dict[str, str | None] | None, **values: object) -> StepRecord:
    """Of a step that ended at that minute."""
    ended = NOON + timedelta(minutes=number)
    made = StepRecord(f"step-{number}", number, "", "shell", StepStatus.COMPLETED, 1, NOON, ended, {}, files)
    return replace(made, **values)  # type: ignore[arg-type]


def versioned(
    store: WorkspaceStore,
    run_id: str,
    journal: list[StepRecord],
    *,
    max_bytes: int = 1000,
    lines: list[str] | None = None,
    inner: Callable[[Workspace], Workspace] = lambda workspace: workspace,
    begun: bool = False,
    quota: Quota = QUOTA,
) -> VersionedWorkspace:
    return VersionedWorkspace(
        inner(store.workspace("user", run_id)),
        store.versions("user", run_id),
        EarlierSteps(journal, begun=True) if begun else EarlierSteps.of(new_run(USER), journal),
        max_bytes=max_bytes,
        quota=quota,
        log_line=(lines if lines is not None else []).append,
        waits=WaitRules(lambda error, pause: None),
    )


async def restored(store: WorkspaceStore, run: Run, journal: list[StepRecord]) -> Workspace:
    workspace = store.workspace("user", run.id)

    async def still_ours() -> None: ...

    await restore(
        store,
        workspace,
        replace(run, user_id="user"),
        journal,
        ensure_ours=still_ours,
        log_line=lambda line: None,
        waits=WaitRules(lambda error, pause: None),
    )
    return workspace


async def contents(workspace: Workspace) -> dict[str, bytes]:
    return {file.path: (await workspace.get(file.path))[1] for file in await workspace.list()}


async def three_steps(store: WorkspaceStore) -> list[StepRecord]:
    """A run that began with two files: one step changes one, adds one and deletes one, the others change one each."""
    for path in ("first.txt", "gone.txt"):
        await store.workspace("user", "source").put(path, b"at first")
    workspace = versioned(store, "source", [])
    await workspace.put("first.txt", b"after 1")
    await workspace.put("new.txt", b"after 1")
    await workspace.delete("gone.txt")
    journal = [record(1, workspace.take_changes())]
    for number in (2, 3):
        await workspace.put("first.txt", b"after %d" % number)
        journal.append(record(number, workspace.take_changes()))
    return journal


FORK = new_run(USER, id="fork", origin={"kind": "fork", "run_id": "source"}, restore={"run_id": "source", "steps": []})


# --- what a step has changed ---


async def test_a_step_s_changes_are_each_path_with_its_etag_or_none(store: WorkspaceStore) -> None:
    await store.workspace("user", "run").put("gone.txt", b"x")
    workspace = versioned(store, "run", [])
    written = await workspace.put("a.txt", b"x")
    await workspace.delete("gone.txt")
    assert workspace.take_changes() == {"a.txt": written.etag, "gone.txt": None}
    assert workspace.take_changes() is None


async def test_what_an_earlier_try_changed_stays_a_part_of_its_step(store: WorkspaceStore) -> None:
    workspace = versioned(store, "run", [])
    first = await workspace.put("first.txt", b"1")
    await workspace.put("gone.txt", b"1")
    earlier = workspace.take_changes()
    await workspace.delete("gone.txt")
    second = await workspace.put("second.txt", b"2")
    assert workspace.take_changes(earlier) == {"first.txt": first.etag, "gone.txt": None, "second.txt": second.etag}


async def test_logs_of_steps_are_no_changes(store: WorkspaceStore) -> None:
    workspace = versioned(store, "run", [])
    await workspace.put(".output/step.log", b"x")
    assert workspace.take_changes() is None
    assert await store.versions("user", "run").beginning() is None


async def test_a_run_that_changes_nothing_asks_nothing_of_the_store(store: WorkspaceStore) -> None:
    await store.workspace("user", "run").put("a.txt", b"x")
    workspace = versioned(store, "run", [])
    await workspace.get("a.txt")
    assert workspace.take_changes() is None
    assert await store.versions("user", "run").beginning() is None


async def test_one_listing_is_made_before_the_first_change_and_a_checkout_s_own_will_do(
    store: WorkspaceStore,
) -> None:
    workspace = versioned(store, "run", [], inner=_CountsListings)
    await workspace.list()
    for number in range(3):
        await workspace.put("a.txt", b"%d" % number)
        workspace.take_changes()
    assert _CountsListings.listings == 1


class _CountsListings(Workspace):
    listings = 0

    def __new__(cls, inner: Workspace) -> "Workspace":  # type: ignore[misc]
        cls.listings, listed = 0, inner.list

        async def counting(prefix: str = "") -> list[FileInfo]:
            cls.listings += 1
            return await listed(prefix)

        inner.list = counting  # type: ignore[method-assign]
        return inner


async def test_changes_that_nobody_noted_belong_to_the_step_that_ends_next(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    # By a worker that was lost before the step's end, or from outside.
    lost = await store.workspace("user", "source").put("lost.txt", b"x")
    workspace = versioned(store, "source", journal)
    written = await workspace.put("new.txt", b"after 4")
    assert workspace.take_changes() == {"lost.txt": lost.etag, "new.txt": written.etag}


def test_the_state_after_steps_is_in_the_order_in_which_they_ended() -> None:
    journal = [record(2, {"a": "2", "b": None}), record(1, {"a": "1", "b": "1"}), record(3, None, finished_at=None)]
    assert state_after({"c": "0"}, journal) == {"a": "2", "c": "0"}


# --- versions ---


async def test_no_more_versions_are_kept_than_may_and_that_is_said_once(store: WorkspaceStore) -> None:
    lines: list[str] = []
    workspace = versioned(store, "run", [], max_bytes=10, lines=lines)
    for content in (b"12345678", b"1234567", b"12", b"1"):
        await workspace.put("a.txt", content)
        workspace.take_changes()
    assert await store.versions("user", "run").size() == 8
    assert len(lines) == 1
    assert "WORKSPACE_VERSIONS_MAX_BYTES" in lines[0]


async def test_an_operator_can_have_none_kept(store: WorkspaceStore) -> None:
    lines: list[str] = []
    workspace = versioned(store, "run", [], max_bytes=0, lines=lines)
    for content in (b"1", b"2"):
        await workspace.put("a.txt", content)
        workspace.take_changes()
    assert (await store.versions("user", "run").size(), lines) == (0, [])


async def test_what_a_step_replaces_of_its_own_is_not_kept(store: WorkspaceStore) -> None:
    workspace = versioned(store, "run", [])
    for content in (b"1", b"2", b"3"):
        await workspace.put("a.txt", content)
    assert await store.versions("user", "run").size() == 0


# --- restoring ---


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, {"first.txt": b"at first", "gone.txt": b"at first"}),
        (1, {"first.txt": b"after 1", "new.txt": b"after 1"}),
        (3, {"first.txt": b"after 3", "new.txt": b"after 1"}),
    ],
)
async def test_a_fork_gets_the_files_as_they_were(
    store: WorkspaceStore, steps: int, expected: dict[str, bytes]
) -> None:
    journal = await three_steps(store)
    workspace = await restored(store, FORK, journal[:steps])
    assert await contents(workspace) == expected
    assert await contents(await restored(store, FORK, journal[:steps])) == expected


async def test_a_fork_keeps_what_its_user_put_there_before_it_was_started(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    await store.workspace("user", "fork").put("first.txt", b"of the user")
    workspace = await restored(store, FORK, journal[:1])
    assert (await contents(workspace))["first.txt"] == b"of the user"


async def test_what_its_user_put_there_is_a_part_of_what_a_fork_began_with(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    await store.workspace("user", "fork").put("own.txt", b"of the user")
    await restored(store, FORK, journal[:1])
    second = new_run(USER, id="second", restore={"run_id": "fork", "steps": []})
    expected = {"first.txt": b"after 1", "new.txt": b"after 1", "own.txt": b"of the user"}
    assert await contents(await restored(store, second, journal[:1])) == expected


async def test_a_fork_of_a_run_that_changed_nothing_gets_its_files(store: WorkspaceStore) -> None:
    await store.workspace("user", "source").put("a.txt", b"x")
    await store.workspace("user", "source").put(".output/step.log", b"x")
    assert await contents(await restored(store, FORK, [])) == {"a.txt": b"x"}


async def test_a_fork_of_a_fork_finds_what_only_the_first_run_kept(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    await restored(store, FORK, journal)
    second = new_run(USER, id="second", restore={"run_id": "fork", "steps": []})
    expected = {"first.txt": b"after 1", "new.txt": b"after 1"}
    assert await contents(await restored(store, second, journal[:1])) == expected


async def test_a_run_goes_back_to_before_its_step_and_can_still_be_forked_from_it(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    source = new_run(USER, id="source", restore={"run_id": "source", "steps": []})
    workspace = await restored(store, source, journal[:1])
    assert await contents(workspace) == {"first.txt": b"after 1", "new.txt": b"after 1"}
    fork = await restored(store, FORK, journal)
    assert (await contents(fork))["first.txt"] == b"after 3"


async def test_files_that_cannot_be_had_any_more_are_named(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    await store.workspace("user", "source").put("new.txt", b"from outside")
    with pytest.raises(FilesGone, match=r"new\.txt"):
        await restored(store, FORK, journal)


async def test_a_run_that_another_worker_has_gets_no_files(store: WorkspaceStore) -> None:
    journal = await three_steps(store)
    workspace = store.workspace("user", "fork")

    async def superseded() -> None:
        raise Superseded("another worker has the run")

    def nothing(*_: object) -> None: ...

    run = replace(FORK, user_id="user")
    with pytest.raises(Superseded):
        await restore(
            store, workspace, run, journal, ensure_ours=superseded, log_line=nothing, waits=WaitRules(nothing)
        )
    assert await workspace.list() == []


# --- times ---


@pytest.mark.parametrize("changes_a_file", [True, False])
async def test_a_fork_s_files_are_as_old_as_those_that_its_source_began_with(
    store: WorkspaceStore, changes_a_file: bool
) -> None:
    source = store.workspace("user", "source")
    files = {path: await source.put(path, b"x") for path in ("a.txt", "b.txt")}
    journal: list[StepRecord] = []
    if changes_a_file:
        workspace = versioned(store, "source", [])
        await workspace.put("a.txt", b"y")
        journal.append(record(1, workspace.take_changes(), attributes=workspace.take_attributes()))
    await restored(store, FORK, [])
    expected = {path: nanoseconds(file.modified_at) for path, file in files.items()}
    noted = await store.versions("user", "fork").beginning()
    assert noted is not None
    assert noted.times == expected
    # A copy in S3 is as old as the copying.
    for path, content in (("a.txt", b"x"), ("b.txt", b"x")):
        await store.workspace("user", "fork").put(path, content)
    copies = {file.path: replace(file, etag=noted.files[file.path]) for file in await fork_files(store)}
    fork = versioned(store, "fork", [], begun=True)
    await fork.attributes.load()
    assert {path: one.modified for path, one in fork.attributes.of_files(copies.values()).items()} == expected


async def fork_files(store: WorkspaceStore) -> list[FileInfo]:
    return await store.workspace("user", "fork").list()


async def test_a_beginning_of_an_older_release_has_no_times() -> None:
    assert Beginning.decoded(b'{"files":{"a":"1"},"runs":["r"]}') == Beginning({"a": "1"}, ("r",))


async def test_the_journal_names_so_many_bytes_of_paths_of_a_step_and_no_more(store: WorkspaceStore) -> None:
    one = stored_path_bytes("é.txt")
    workspace = versioned(store, "run", [], quota=replace(QUOTA, max_step_attributes=2 * one))
    await workspace.put("é.txt", b"1")
    await workspace.put("è.txt", b"1")
    await workspace.put("é.txt", b"the same path again takes no more")
    with pytest.raises(QuotaExceeded, match="what this step changed take more"):
        await workspace.put("a", b"1")
    assert (workspace.take_changes() or {}).keys() == {"é.txt", "è.txt"}, "what was refused has not happened"
    await workspace.put("a", b"of the next step")


@pytest.mark.parametrize("is_derived", [False, True], ids=["its own steps", "steps that a fork was made with"])
async def test_the_journal_names_so_many_bytes_of_paths_of_a_run_and_no_more(
    store: WorkspaceStore, is_derived: bool
) -> None:
    journal: list[StepRecord] = []
    one = stored_path_bytes("a")
    quota = replace(QUOTA, max_run_attributes=2 * one)
    workspace = versioned(store, "run", journal, quota=quota)
    await workspace.put("a", b"1")
    if is_derived:
        workspace = versioned(store, "run", [record(1, workspace.take_changes())], quota=quota)
    else:
        workspace.take_changes()
    await workspace.put("b", b"1")
    with pytest.raises(QuotaExceeded, match="what all steps of this run changed take more"):
        await workspace.delete("a")
