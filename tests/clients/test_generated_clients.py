"""Clients that are generated from the API's description, and the programs of docs/api.md that use them, do a real run.

The descriptions are read from the running API, as docs/api.md says. The programs are checked by the types that were
generated, so a type that does not fit fails here.
"""

import asyncio
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.slow

SECONDS = 240


async def succeeds(*command: str | Path, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What the command printed. Its end must be good."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_a_client_in_python_is_generated_without_a_warning_and_carries_a_run_through(
    api: Api,
    person: Person,
    tmp_path: Path,
    generator: Callable[[str], Path],
    documented: Callable[[str], str],
) -> None:
    generate = generator("bin/openapi-python-client")
    client = tmp_path / "agent-client"
    # It formats what it made by the ruff beside it.
    path = f"{generate.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    said = await succeeds(
        *(generate, "generate", "--url", f"{api.url}/openapi.json", "--output-path", client, "--fail-on-warning"),
        folder=tmp_path,
        environment={"PATH": path},
    )
    assert "arning" not in said
    program = tmp_path / "copy_words.py"
    program.write_text(documented("python"))
    environment = {"PYTHONPATH": str(client), "MYPYPATH": str(client), "PYTHONWARNINGS": "error"}
    mypy = Path(sysconfig.get_path("scripts")) / "mypy"
    cache = ("--cache-dir", tmp_path / "mypy")
    await succeeds(mypy, "--strict", *cache, program, folder=tmp_path, environment=environment)
    await succeeds(mypy, *cache, "-p", "agent_platform_client", folder=tmp_path, environment=environment)
    environment |= {"AGENT_URL": api.url, "AGENT_TOKEN": person.token}
    said = await succeeds(sys.executable, program, folder=tmp_path, environment=environment)
    assert said.rstrip().endswith("one two three")
    assert "completed [('read', 'completed'), ('write', 'completed')]" in said
    [run] = (await person.http.get("/agent/runs")).json()["runs"]
    assert run["status"] == "completed"


async def test_a_client_in_typescript_is_generated_without_a_warning_and_carries_a_run_through(
    api: Api,
    person: Person,
    tmp_path: Path,
    generator: Callable[[str], Path],
    documented: Callable[[str], str],
) -> None:
    generate = generator("node_modules/.bin/openapi-typescript")
    (tmp_path / "node_modules").symlink_to(generate.parents[1])
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = ("--output", "agent-api.d.ts", "--default-non-nullable", "false")
    said = await succeeds(generate, f"{api.url}/openapi.json", *options, folder=tmp_path)
    assert not {"warn", "⚠"} & set(said.lower().split())
    (tmp_path / "copy-words.ts").write_text(documented("typescript"))
    compiler = generator("node_modules/.bin/tsc")
    strictly = ("--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable")
    await succeeds(compiler, *strictly, "copy-words.ts", "agent-api.d.ts", folder=tmp_path)
    (tmp_path / "main.js").write_text(
        'import { copyWords } from "./copy-words.js";\n'
        "console.log(await copyWords(process.argv[2], process.argv[3]));\n"
    )
    said = await succeeds("node", "main.js", api.url, person.token, folder=tmp_path)
    assert said.rstrip().endswith("one two three")
    assert "read completed" in said
