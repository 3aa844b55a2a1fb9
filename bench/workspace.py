"""A run's files brought up to S3 and down to another worker, whole and again with 1 % changed, beside rclone and s5cmd.

Two trees: 5,000 files of 4 KB in 50 folders, and one file of 500 MB. The second time 50 of the small files have other
content; beside the large one, which is as it was, lies a new file of 5 MB. When a single byte of the large file has
changed, all of it goes again, for objects are only ever replaced whole: measured as well, but no goal.

All sync with one S3 server, one after another in turns, the first one first in the first round, the second in the next;
after each round what arrived is compared byte by byte. What was written before is on the disk before the clock
starts.

The server may lose one of several files that are put at once into a new folder; ours never put them so. A peer that
lost one in this way cannot end its round, and is left out of it.
"""

import asyncio
import filecmp
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import uvloop

from bench._result import Goal, report
from bench._sync import PeerFailed, Syncer, contestants
from tests.servers import S3Server

ROUNDS = 3
FILES = 5_000
FILE_BYTES = 4 * 1024
FOLDERS = 50
LARGE_BYTES = 500 * 1000**2
AGAIN = 0.01
SEED = 4

Seconds = dict[str, dict[str, list[float]]]
"""By contestant, then by phase."""


def make_small(tree: Path, content: random.Random) -> None:
    for number in range(FILES):
        path = tree / f"{number % FOLDERS}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.randbytes(FILE_BYTES))


def change_small(tree: Path, content: random.Random) -> None:
    for number in range(0, FILES, round(1 / AGAIN)):
        (tree / f"{number % FOLDERS}" / f"{number}.bin").write_bytes(content.randbytes(FILE_BYTES))


def make_large(tree: Path, content: random.Random) -> None:
    with (tree / "large.bin").open("wb") as file:
        for _ in range(LARGE_BYTES // 10**6):
            file.write(content.randbytes(10**6))


def change_large(tree: Path, content: random.Random) -> None:
    (tree / "small.bin").write_bytes(content.randbytes(round(LARGE_BYTES * AGAIN)))


def change_one_byte(tree: Path, content: random.Random) -> None:
    with (tree / "large.bin").open("r+b") as file:
        before = file.read(1)
        file.seek(0)
        file.write(bytes([before[0] ^ 0xFF]))


Edit = Callable[[Path, random.Random], None]


def one_round(taking_part: Sequence[Syncer], make: Edit, changes: Mapping[str, Edit]) -> Seconds:
    """`changes`: what is done to the files before they are synced again, by what that is called."""
    seconds: Seconds = defaultdict(lambda: defaultdict(list))
    left = list(taking_part)
    for name, edit in {"": make, **changes}.items():
        for each in left:
            edit(each.here, random.Random(f"{SEED}{name}"))
        for direction in ("up", "down"):
            for each in list(left):
                os.sync()
                try:
                    took = each.up() if direction == "up" else each.down()
                except PeerFailed:
                    left.remove(each)
                    seconds.pop(each.name, None)
                else:
                    seconds[each.name][f"{direction} {name}".rstrip()].append(took)
        for each in left:
            check_equal(each)
    return seconds


def check_equal(each: Syncer) -> None:
    here = {path.relative_to(each.here) for path in each.here.rglob("*") if path.is_file()}
    there = {path.relative_to(each.there) for path in each.there.rglob("*") if path.is_file()}
    _, differ, unread = filecmp.cmpfiles(each.here, each.there, [str(path) for path in here & there], shallow=False)
    if here != there or differ or unread:
        raise RuntimeError(f"{each.name}: {len(here ^ there)} files are missing or left over, {len(differ)} differ")


def measure(folder: Path, server: S3Server, make: Edit, changes: Mapping[str, Edit]) -> dict[str, dict[str, float]]:
    """Median seconds by contestant and phase."""
    rounds: Seconds = defaultdict(lambda: defaultdict(list))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(ROUNDS):
            here = folder / f"{number}"
            bucket = server.create_bucket()
            taking_part = list(contestants(here, server, bucket, runner))
            first = number % len(taking_part)
            for name, phases in one_round(taking_part[first:] + taking_part[:first], make, changes).items():
                for phase, seconds in phases.items():
                    rounds[name][phase] += seconds
            for each in taking_part:
                each.close()
            shutil.rmtree(here)
            shutil.rmtree(server.folder / bucket)
    return {name: {phase: median(found) for phase, found in phases.items()} for name, phases in rounds.items()}


def goals(tree: str, measured: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    ours = measured["ours"]
    found = []
    for direction in ("up", "down"):
        peer, best = min((phases[direction], name) for name, phases in measured.items() if name != "ours")
        found.append(Goal(f"{tree} {direction}, to the faster peer ({best})", round(ours[direction] / peer, 2), 1.0))
    for direction in ("up", "down"):
        times = ours[direction] / ours[f"{direction} again"]
        found.append(Goal(f"{tree} {direction}, the first time to the second", round(times, 1), 10, at_least=True))
    return found


def main() -> None:
    trees: dict[str, tuple[Edit, Mapping[str, Edit]]] = {
        "5,000 x 4 KB": (make_small, {"again": change_small}),
        "1 x 500 MB": (make_large, {"again": change_large, "with one byte changed": change_one_byte}),
    }
    values: dict[str, object] = {"unit": "ms, median", "rounds": ROUNDS}
    found: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        try:
            for tree, (make, changes) in trees.items():
                measured = measure(Path(folder) / "trees", server, make, changes)
                values[tree] = {
                    name: {phase: round(seconds * 1000, 1) for phase, seconds in phases.items()}
                    for name, phases in measured.items()
                }
                found += goals(tree, measured)
        finally:
            server.stop()
    report("workspace", values, found)


if __name__ == "__main__":
    main()
