"""The API with a worker, and the generators that `make test-clients` installs beside the project."""

import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.integration.api.running import Api, Person, running, settings_on, worker_starter

ROOT = Path(__file__).parents[2]
GENERATORS = ROOT / ".venv-clients"


@pytest.fixture
async def api(redis: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(settings_on(tmp_path, redis_url=redis)) as api, worker_starter() as start_worker:
        start_worker(api.settings)
        yield api


@pytest.fixture
async def person(api: Api) -> Person:
    return await api.person()


@pytest.fixture
def generator() -> Callable[[str], Path]:
    """Path of a program in `.venv-clients`. Without it the test is skipped, or fails where CI is set."""

    def found(program: str) -> Path:
        path = GENERATORS / program
        if path.exists() and shutil.which("node" if "node_modules" in program else "python3"):
            return path
        message = f"needs {path.name}: run `make test-clients`, which installs it (with npm for TypeScript)"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return found


@pytest.fixture
def documented() -> Callable[[str], str]:
    """The program in docs/api.md that is in this language."""

    def found(language: str) -> str:
        text = (ROOT / "docs" / "api.md").read_text()
        [program] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        return str(program)

    return found
