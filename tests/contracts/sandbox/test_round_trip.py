"""A whole workspace into a sandbox and back."""

import hashlib
from pathlib import Path

import pytest

from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import MIB, files_in
from worker.sandbox.base import Sandbox

FILES = 5000
LARGE = 500_000_000

PROGRAM = """
import hashlib, os, pathlib
digest = hashlib.sha256()
paths = sorted(str(path) for path in pathlib.Path().rglob("*") if path.is_file())
for path in paths:
    digest.update(path.encode() + pathlib.Path(path).read_bytes())
for path in paths[::100]:
    os.remove(path)
for path in paths[1::100]:
    pathlib.Path(path).write_text("changed")
pathlib.Path("added").mkdir()
pathlib.Path("added/h\\u00e9 llo").write_bytes(bytes(range(256)))
print(len(paths), digest.hexdigest())
"""


@pytest.mark.slow
async def test_five_thousand_small_files_go_in_and_come_back_as_the_command_left_them(
    sandbox: Sandbox, run: Run, folder: Path
) -> None:
    digest = hashlib.sha256()
    wanted: dict[str, bytes] = {}
    for number in range(FILES):
        path = f"{number % 50:02}/{number:05}"
        wanted[path] = number.to_bytes(4) * (number % 2048)
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(wanted[path])
    paths = sorted(wanted)
    for path in paths:
        digest.update(path.encode() + wanted[path])

    outcome, said = await run(sandbox, "python3", "-c", PROGRAM, files=2 * FILES, wall_seconds=120)

    assert outcome.exit_code == 0, said
    assert said.split() == [str(FILES), digest.hexdigest()]
    for path in paths[::100]:
        del wanted[path]
    wanted |= dict.fromkeys(paths[1::100], b"changed") | {"added/h\u00e9 llo": bytes(range(256))}
    assert {path: (folder / path).read_bytes() for path in files_in(folder) if (folder / path).is_file()} == wanted


@pytest.mark.slow
async def test_a_file_of_half_a_gigabyte_goes_in_and_comes_back(sandbox: Sandbox, run: Run, folder: Path) -> None:
    part = hashlib.sha256(b"large").digest() * (MIB // 32)
    digest = hashlib.sha256()
    with (folder / "in").open("wb") as file:
        for start in range(0, LARGE, MIB):
            piece = part[: min(MIB, LARGE - start)]
            file.write(piece)
            digest.update(piece)

    outcome, said = await run(
        sandbox,
        *("sh", "-c", "sha256sum < in && mv in out && printf x >> out"),
        wall_seconds=300,
        file_bytes=LARGE + MIB,
        disk_bytes=2 * LARGE,
    )

    assert outcome.exit_code == 0, said
    assert said.split()[0] == digest.hexdigest()
    digest.update(b"x")
    assert files_in(folder) == ["out"]
    with (folder / "out").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
