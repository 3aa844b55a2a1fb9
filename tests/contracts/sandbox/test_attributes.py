"""Times, modes, folders and links go into each kind of sandbox and come back as the command left them."""

import os
from pathlib import Path

from tests.contracts.sandbox.conftest import Run
from worker.sandbox.base import Sandbox

LONG_AGO = 981_173_106_123_456_789

LOOK = """
import os
for name in ("d", "d/file", "d/run", "empty", "link"):
    status = os.lstat(name)
    print(name, oct(status.st_mode & 0o777), status.st_mtime_ns, os.path.islink(name) and os.readlink(name))
print(oct(os.umask(0)), os.environ["PYTHONDONTWRITEBYTECODE"])
"""

CHANGE = """
import os
os.chmod("d/file", 0o640)
os.utime("d/run", ns=(7, 7))
os.rmdir("empty")
os.makedirs("new/inner", 0o700)
os.unlink("link")
os.symlink("../elsewhere", "new/link")
open("made", "w").close()
os.chmod("made", 0o755)
os.utime("made", ns=(8, 8))
os.utime("d", ns=(9, 9))
"""


def prepare(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "empty").mkdir()
    for name, mode in (("d/file", 0o600), ("d/run", 0o755)):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(mode)
        os.utime(folder / name, ns=(0, LONG_AGO))
    (folder / "link").symlink_to("/etc/hosts")
    os.utime(folder / "link", ns=(0, LONG_AGO), follow_symlinks=False)
    (folder / "d").chmod(0o750)
    (folder / "empty").chmod(0o755)
    for name in ("d", "empty"):
        os.utime(folder / name, ns=(0, LONG_AGO + 1))


async def test_a_command_sees_them(sandbox: Sandbox, run: Run, folder: Path) -> None:
    prepare(folder)
    outcome, said = await run(sandbox, "python3", "-c", LOOK)
    assert outcome.exit_code == 0, said
    assert said.splitlines() == [
        f"d 0o750 {LONG_AGO + 1} False",
        f"d/file 0o600 {LONG_AGO} False",
        f"d/run 0o755 {LONG_AGO} False",
        f"empty 0o755 {LONG_AGO + 1} False",
        f"link 0o777 {LONG_AGO} /etc/hosts",
        "0o22 1",
    ]


async def test_they_come_back_as_a_command_left_them(sandbox: Sandbox, run: Run, folder: Path) -> None:
    prepare(folder)
    outcome, said = await run(sandbox, "python3", "-c", CHANGE)
    assert outcome.exit_code == 0, said
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    assert found.keys() == {"d", "d/file", "d/run", "new", "new/inner", "new/link", "made"}
    assert {name: oct(status.st_mode & 0o777) for name, status in found.items()} == {
        "d": "0o750",
        "d/file": "0o640",
        "d/run": "0o755",
        "new": "0o755",
        "new/inner": "0o700",
        "new/link": "0o777",
        "made": "0o755",
    }
    times = {name: found[name].st_mtime_ns for name in ("d/file", "d/run", "made", "d")}
    assert times == {"d/file": LONG_AGO, "d/run": 7, "made": 8, "d": 9}
    assert os.readlink(folder / "new/link") == "../elsewhere"
