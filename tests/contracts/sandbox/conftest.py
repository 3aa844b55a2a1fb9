"""A test says by its fixture which kinds it holds for: `sandbox` all, `isolated` those with walls, `nearby` those that
can be watched from this machine, `local_sandbox` the two without an engine."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.workspace.files import empty, open_folder
from tests.contracts.sandbox.sandboxes import EVERY, ISOLATED, LOCAL, NEARBY, OPENERS, Place, Running, kinds, opened
from tests.kubernetes.conftest import kubeconfig, namespace, sandbox_image
from worker.sandbox.base import Outcome, Sandbox

__all__ = ["kubeconfig", "namespace", "sandbox_image"]

Run = Callable[..., Coroutine[Any, Any, tuple[Outcome, str]]]


def place(request: pytest.FixtureRequest) -> Place:
    if request.param != "kubernetes":
        return Place(request.param)
    of_cluster = {name: request.getfixturevalue(name) for name in ("namespace", "kubeconfig")}
    return Place(request.param, image=request.getfixturevalue("sandbox_image"), **of_cluster)


@pytest.fixture(params=kinds(EVERY))
def every_place(request: pytest.FixtureRequest) -> Place:
    return place(request)


@pytest.fixture(params=kinds(ISOLATED))
def isolated_place(request: pytest.FixtureRequest) -> Place:
    return place(request)


@pytest.fixture
async def sandbox(every_place: Place) -> AsyncIterator[Sandbox]:
    async with opened(every_place) as sandbox:
        yield sandbox


@pytest.fixture
async def isolated(isolated_place: Place) -> AsyncIterator[Sandbox]:
    async with opened(isolated_place) as sandbox:
        yield sandbox


@pytest.fixture(params=kinds(NEARBY))
async def nearby(request: pytest.FixtureRequest) -> Sandbox:
    return await OPENERS[request.param]()


@pytest.fixture(params=kinds(LOCAL))
async def local_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return await OPENERS[request.param]()


@pytest.fixture
async def bubblewrap() -> Sandbox:
    return await OPENERS["bubblewrap"]()


@pytest.fixture
async def container() -> Sandbox:
    return await OPENERS["container"]()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield from emptied(tmp_path / "files")


@pytest.fixture
def other_folder(tmp_path: Path) -> Iterator[Path]:
    yield from emptied(tmp_path / "other")


def emptied(made: Path) -> Iterator[Path]:
    made.mkdir()
    yield made
    with open_folder(made) as opened:
        empty(opened)  # pytest cannot remove what lies as deep as some tests let it


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs a command in the folder and gives its outcome and its output as text."""

    async def run(sandbox: Sandbox, *argv: str, **changed: Any) -> tuple[Outcome, str]:
        return await Running(sandbox, folder, *argv, **changed).ends()

    return run
