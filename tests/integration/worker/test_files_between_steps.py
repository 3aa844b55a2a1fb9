"""A step finds the files as an earlier one left them: times, modes, folders and links, whatever stood in between.

Each case is a run of its own; all of them run at once. The last step's output says whether the case holds.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import pytest

from app.schemas.execute import ForkRun
from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from tests.platform.workers import Platform, worker
from tests.submitted import shell
from tests.waiting import wait_until

GIT = "git -c user.name=a -c user.email=a@example.org"
MAKEFILE = r"out: in\n\tcp in out\n"


@dataclass(frozen=True)
class Case:
    """`scripts`: a step each. `says`: what the last one writes."""

    scripts: tuple[str, ...]
    says: str


CASES = {
    "make builds what is older than its source, and nothing else": Case(
        (
            f"printf '{MAKEFILE}' > Makefile; echo old > in; make",
            "make | grep -c 'up to date'; echo new > in",
            "make > /dev/null; cat out",
        ),
        "new\n",
    ),
    "make builds nothing anew": Case(
        (f"printf '{MAKEFILE}' > Makefile; echo old > in; sleep 0.01; make", "make"),
        "make: 'out' is up to date.\n",
    ),
    "a folder that is a target of make is as old as it was": Case(
        (
            r"printf 'out: in\n\tmkdir -p out; cp in out/; touch out\n' > Makefile; echo old > in; make",
            "echo new > in",
            "make > /dev/null; cat out/in",
        ),
        "new\n",
    ),
    "a time from the past stays": Case(
        ("echo x > a; touch -d '2001-02-03 04:05:06.123456789 UTC' a", "TZ=UTC stat -c %y a"),
        "2001-02-03 04:05:06.123456789 +0000\n",
    ),
    "a file that is only touched is younger": Case(
        ("echo 1 > a; echo 2 > b; touch -d 2001-01-01 a b", "touch -d 2002-01-01 a", "ls -t a b | head -1"),
        "a\n",
    ),
    "modes are the usual ones": Case(
        ("echo x > plain; echo x > run; chmod +x run; mkdir made", "stat -c '%a %n' made plain run"),
        "755 made\n644 plain\n755 run\n",
    ),
    "modes that are not the usual ones stay": Case(
        ("mkdir -m 700 keys; umask 077; echo x > keys/id; chmod 600 keys/id", "stat -c '%a %n' keys keys/id"),
        "700 keys\n600 keys/id\n",
    ),
    "a mode alone is a change": Case(
        ("echo 'echo ran' > tool", "chmod 755 tool", "./tool"),
        "ran\n",
    ),
    "git sees no changes": Case(
        (
            f"git init -q repo; cd repo; echo 1 > a; echo 'echo hi' > run; chmod +x run; {GIT} add .; "
            f"{GIT} commit -qm one",
            "cd repo; git status --porcelain; git log --format=%s",
        ),
        "one\n",
    ),
    "a repository without a commit is one": Case(
        ("git init -q repo", "cd repo; git status --porcelain; git rev-parse --is-inside-work-tree"),
        "true\n",
    ),
    "git goes on after gc": Case(
        (
            f"git init -q repo; cd repo; echo 1 > a; {GIT} add .; {GIT} commit -qm one; git gc -q",
            f"cd repo; echo 2 > a; {GIT} commit -qam two; git log --format=%s",
        ),
        "two\none\n",
    ),
    "a clone of a repository beside it works": Case(
        (
            f"git init -q repo; cd repo; echo 1 > a; {GIT} add .; {GIT} commit -qm one; cd ..; git clone -q repo copy",
            "cd copy; git status --porcelain; git pull -q; cat a",
        ),
        "1\n",
    ),
    "an empty folder is there": Case(
        ("mkdir out; echo a > a.txt", "mv a.txt out", "cat out/a.txt"),
        "a\n",
    ),
    "a folder that was removed is gone": Case(
        ("mkdir -p out/inner kept", "rmdir out/inner out", "ls"),
        "kept\n",
    ),
    "a mended module runs as it is now": Case(
        (
            "echo 'print(1)' > mod.py; touch -d 2001-01-01 mod.py; python3 -c 'import mod'",
            "echo 'print(2)' > mod.py; touch -d 2001-01-01 mod.py",
            "python3 -c 'import mod'",
        ),
        "2\n",
    ),
    "bytecode is not kept": Case(
        ("echo 'print(1)' > mod.py; python3 -m compileall -q .; ls", "ls"),
        "mod.py\n",
    ),
    "an environment of Python's works": Case(
        ("python3 -m venv --without-pip env", "env/bin/python -c 'import sys; print(sys.prefix)'; ls -d env/lib64/."),
        "/workspace/env\nenv/lib64/.\n",
    ),
    "a link that leads to a file beside it is there": Case(
        ("echo x > a; mkdir d; ln -s ../a d/b; ln -s nowhere c", "cat d/b; readlink c"),
        "x\nnowhere\n",
    ),
    "a link that was replaced by a file is one": Case(
        ("echo x > a; ln -s a b", "rm b; echo y > b", "cat a b"),
        "x\ny\n",
    ),
    "names of one file become files of their own": Case(
        ("echo 1 > a; ln a b", "echo 2 >> a", "cat b"),
        "1\n",
    ),
}


@pytest.fixture
async def working_platform(platform: Platform) -> AsyncIterator[Platform]:
    """With a worker whose leases outlast a machine that is busy with many sandboxes at once."""
    async with worker(platform.settings.model_copy(update={"lease_seconds": 15.0})):
        yield platform


async def submitted(platform: Platform, cases: Iterable[str], *, approval: bool = False) -> dict[str, str]:
    """The ids of the cases' runs; with `approval` a person is asked before each step but the first."""
    return {
        name: await platform.submit(
            *(
                shell(f"s{number}", script, approval=approval and number > 0)
                for number, script in enumerate(CASES[name].scripts)
            )
        )
        for name in cases
    }


async def approve(platform: Platform, run_id: str) -> None:
    """Answer yes to all that the run asks, until it is over."""
    decisions = platform.resources.store.decisions

    async def over() -> bool:
        for decision in await decisions.of_run(run_id):
            if decision.status is DecisionStatus.PENDING:
                await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, {})
        return (await platform.run(run_id)).status in (RunStatus.COMPLETED, RunStatus.FAILED)

    await wait_until(over, 60)


async def said(platform: Platform, runs: dict[str, str]) -> dict[str, str]:
    """What the last step of each said; of one that failed, why."""
    found = {}
    for name, run_id in runs.items():
        run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
        last = (await platform.journal(run_id))[-1]
        found[name] = (last.result or {})["output"] if run.error is None else run.error.message
    return found


def expected(cases: Iterable[str]) -> dict[str, str]:
    return {name: CASES[name].says for name in cases}


FEW = [
    "make builds what is older than its source, and nothing else",
    "git goes on after gc",
    "an empty folder is there",
]
ALL = pytest.param(list(CASES), marks=pytest.mark.slow, id="all")
a_few_or_all = pytest.mark.parametrize("cases", [pytest.param(FEW, id="few"), ALL])
all_of_them = pytest.mark.parametrize("cases", [ALL])


@all_of_them
async def test_the_next_step_finds_the_files_as_they_were_left(
    working_platform: Platform, isolated: None, cases: list[str]
) -> None:
    assert await said(working_platform, await submitted(working_platform, cases)) == expected(cases)


@a_few_or_all
async def test_a_step_after_an_approval_finds_the_files_as_they_were_left(
    working_platform: Platform, isolated: None, cases: list[str]
) -> None:
    runs = await submitted(working_platform, cases, approval=True)
    await asyncio.gather(*(approve(working_platform, run_id) for run_id in runs.values()))
    assert await said(working_platform, runs) == expected(cases)


@all_of_them
async def test_a_fork_finds_the_files_as_its_source_had_left_them(
    working_platform: Platform, isolated: None, cases: list[str]
) -> None:
    sources = await submitted(working_platform, cases)
    await said(working_platform, sources)
    forks = {}
    for name, run_id in sources.items():
        fork = ForkRun(action="fork", run_id=run_id, step="s0")
        forks[name] = (await working_platform.submission.fork(working_platform.user, fork, None)).id
    assert await said(working_platform, forks) == expected(cases)


@all_of_them
async def test_a_run_that_goes_back_finds_the_files_as_they_were(
    working_platform: Platform, isolated: None, cases: list[str]
) -> None:
    runs = await submitted(working_platform, cases)
    await said(working_platform, runs)
    for run_id in runs.values():
        await working_platform.submission.retry_from(working_platform.user, run_id, "s1")
    assert await said(working_platform, runs) == expected(cases)


async def test_steps_at_the_same_time_see_the_same_files(working_platform: Platform, isolated: None) -> None:
    look = "find . -printf '%p %m %T@ %l\\n' | grep -v '^[.] ' | sort; sleep 0.1"
    made = (
        "mkdir -m 750 d; echo x > d/a; echo x > b; chmod 600 b; ln -s b c; touch -d 2001-01-01 d/a; umask 002; echo > e"
    )
    run_id = await working_platform.submit(
        shell("first", made), shell("left", look, needs=["first"]), shell("right", look, needs=["first"])
    )
    await working_platform.completed(run_id)
    _, left, right = ((record.result or {})["output"] for record in await working_platform.journal(run_id))
    assert left == right
    assert [line.split()[:2] for line in left.splitlines()] == [
        ["./b", "600"],
        ["./c", "777"],
        ["./d", "750"],
        ["./d/a", "644"],
        ["./e", "664"],
    ]


@pytest.mark.slow
async def test_a_program_that_a_patch_makes_or_marks_can_be_run_by_the_next_step(
    working_platform: Platform, isolated: None
) -> None:
    patch = (
        "diff --git a/new b/new\nnew file mode 100755\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+echo new\n"
        "diff --git a/old b/old\nold mode 100644\nnew mode 100755\n"
    )
    run_id = await working_platform.submit(
        shell("first", "echo 'echo old' > old"),
        {"id": "patch", "tool": "apply_patch", "arguments": {"patch": patch}},
        shell("run", "./new; ./old; stat -c %a new old"),
    )
    await working_platform.completed(run_id)
    assert ((await working_platform.journal(run_id))[-1].result or {})["output"] == "new\nold\n755\n755\n"
