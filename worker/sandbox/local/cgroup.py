"""Control groups: caps on memory and processes for a command and all that it starts, together.

Each command gets a child group below the group of this process, so that limits set from outside always apply. Both
versions are served: v1 has one tree a controller, v2 one for all. Where no child group can be made (an ordinary user
without delegation, a container with a read-only tree) there is none, and resource limits must do.

Commands have a small share of the CPU beside this process and others outside (`CPU_SHARE`): what an agent runs slows
down neither another user's run nor the API on the same machine. With idle CPU it has all of that. A nice value would
not do: the kernel gives each session of processes a share of its own (autogroup), and a command can make sessions.

It does not move this process, change limits of groups that it did not make, or cap CPU.
"""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

MEMORY, PIDS, CPU = "memory", "pids", "cpu"

CPU_SHARE = 1 / 10
"""A command's weight beside a process outside, whose weight is 1. It is that of nice value 10 (110 of 1024 in the
kernel's table sched_prio_to_weight)."""
_WEIGHT_FILES = {1: ("cpu.shares", 1024), 2: ("cpu.weight", 100)}
"""By version: the file, and what it says of weight 1."""

_PREFIX = "sandbox-"
_REMOVE_SECONDS = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder of a control group tree in which child groups can be made, and what they can cap."""

    folder: Path
    controllers: frozenset[str]
    version: int


class ControlGroup:
    """The group of one command. Every method is a few small writes to the kernel, and none raises for a process that
    has just gone."""

    def __init__(self, parts: tuple[tuple[Tree, Path], ...]) -> None:
        self._parts = parts

    @property
    def caps_memory(self) -> bool:
        return any(MEMORY in tree.controllers for tree, _ in self._parts)

    @property
    def join_files(self) -> tuple[Path, ...]:
        """Writing a process id, or 0 for the writer's own, to each of these files joins the group."""
        return tuple(folder / "cgroup.procs" for _, folder in self._parts)

    def join(self, pid: int) -> None:
        for file in self.join_files:
            file.write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process of this group because the group was at its memory cap."""
        for tree, folder in self._parts:
            if MEMORY in tree.controllers:
                text = (folder / ("memory.oom_control" if tree.version == 1 else "memory.events")).read_text()
                counters = dict(line.split(maxsplit=1) for line in text.splitlines())
                return int(counters.get("oom_kill", "0")) > 0
        return False

    def kill(self) -> None:
        """SIGKILL to every process of the group, however fast they fork."""
        for tree, folder in self._parts:
            with contextlib.suppress(OSError):
                if (folder / "cgroup.kill").exists():
                    (folder / "cgroup.kill").write_text("1")
                    continue
                if PIDS in tree.controllers:
                    (folder / "pids.max").write_text("0")
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> bool:
        """Remove the group; False while a process is still in it."""
        removed = True
        for _, folder in self._parts:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                removed = False
        return removed


class ControlGroups:
    """Makes child groups in the trees that `find` found usable."""

    def __init__(self, trees: tuple[Tree, ...]) -> None:
        self._trees = trees
        self.controllers = frozenset[str]().union(*(tree.controllers for tree in trees))

    @classmethod
    def find(cls) -> "ControlGroups":
        """Try it out once. The result may hold no tree at all: see `controllers`."""
        usable = []
        for tree in _own_trees():
            _remove_left_over(tree.folder)
            groups = cls((tree,))
            try:
                group = groups.create(memory_bytes=2**30, processes=16)
            except OSError:
                continue
            group.remove()
            usable.append(tree)
        return cls(tuple(usable))

    def create(self, *, memory_bytes: int, processes: int) -> ControlGroup:
        """Raises OSError when the kernel refuses; then nothing is left behind."""
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        group = ControlGroup(tuple((tree, tree.folder / name) for tree in self._trees))
        try:
            for tree in self._trees:
                folder = tree.folder / name
                folder.mkdir()
                if MEMORY in tree.controllers:
                    _cap_memory(folder, memory_bytes, tree.version)
                if PIDS in tree.controllers:
                    (folder / "pids.max").write_text(str(processes))
                if CPU in tree.controllers:
                    file, whole = _WEIGHT_FILES[tree.version]
                    (folder / file).write_text(str(round(whole * CPU_SHARE)))
        except OSError:
            group.remove()
            raise
        return group


def wait_until_removed(group: ControlGroup) -> bool:
    """Blocks until the group is gone, which takes moments after its last process; False when it does not go."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while not group.remove():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _cap_memory(folder: Path, size: int, version: int) -> None:
    """Swap counts as memory, where the kernel keeps account of it: else a cap only moves the load to the disk."""
    if version == 2:
        (folder / "memory.max").write_text(str(size))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        return
    (folder / "memory.limit_in_bytes").write_text(str(size))
    if (folder / "memory.memsw.limit_in_bytes").exists():
        (folder / "memory.memsw.limit_in_bytes").write_text(str(size))


def _own_trees() -> list[Tree]:
    """The groups of this process, one a mounted tree, whose child groups could cap memory or processes, or have a
    weight."""
    try:
        # A mount point may have any name.
        memberships = Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    trees: list[Tree] = []
    for membership in memberships:
        _, names, own = membership.split(":", 2)
        wanted = frozenset(names.split(",")) & {MEMORY, PIDS, CPU}
        version = 2 if not names else 1
        if version == 1 and not wanted:
            continue
        for mount in mounts:
            left, _, right = mount.partition(" - ")
            root, point = left.split()[3:5]
            kind, _, options = right.split(maxsplit=2)
            if kind != ("cgroup2" if version == 2 else "cgroup") or not wanted <= set(options.split(",")):
                continue
            if not Path(own).is_relative_to(root):
                continue
            folder = Path(point) / Path(own).relative_to(root)
            if version == 1:
                trees.append(Tree(folder, wanted, 1))
            else:
                trees += _unified(folder)
            break
    return trees


def _unified(own: Path) -> list[Tree]:
    """In v2 a group that holds processes cannot give controllers to child groups. So this works where the service
    manager put this process into a leaf of a tree that is delegated to it (systemd: Delegate=, DelegateSubgroup=)."""
    candidates = [own]
    with contextlib.suppress(OSError):
        if os.getxattr(own.parent, "user.delegate") == b"1":
            candidates.append(own.parent)
    for folder in candidates:
        with contextlib.suppress(OSError):
            control = folder / "cgroup.subtree_control"
            wanted = {MEMORY, PIDS, CPU} & set((folder / "cgroup.controllers").read_text().split())
            lacking = wanted - set(control.read_text().split())
            try:
                _enable(control, lacking)
            except OSError:
                # The kernel refuses cpu beside processes of real-time priority. Memory and processes are capped all the
                # same.
                if CPU not in lacking:
                    raise
                _enable(control, lacking - {CPU})
                wanted = wanted - {CPU}
            if wanted:
                return [Tree(folder, frozenset(wanted), 2)]
    return []


def _enable(control: Path, controllers: AbstractSet[str]) -> None:
    if controllers:
        control.write_text(" ".join(f"+{name}" for name in sorted(controllers)))


def _remove_left_over(folder: Path) -> None:
    """Empty groups of a process that was killed before it could remove them."""
    for group in folder.glob(f"{_PREFIX}*"):
        owner = group.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                group.rmdir()
