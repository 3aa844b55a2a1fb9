"""What every module of the project has in common. Who may import whom is the import contracts' (`make check`)."""

import ast
import re
import tomllib
from pathlib import Path

from backplane import VERSION

ROOT = Path(__file__).parents[2]
LONGEST_FILE_LINES = 600
PACKAGES = ("agentctl", "app", "backplane", "controller", "standalone", "worker")
MOST_FILES = 12
EQUALS = frozenset(
    {
        "agentctl/commands",
        "app/routes",
        "app/schemas",
        "backplane/domain",
        "backplane/settings",
        "backplane/store",
        "backplane/store/migrations/versions",
        "worker/llm",
        "worker/tools",
    }
)
"""Folders of equals, which a reader does not enter as a whole: one file a command, route, table, tool."""


def modules() -> dict[str, str]:
    """Path and text of every Python file of the project."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return {str(path): (ROOT / path).read_text() for path in sorted(paths) if not path.parts[0].startswith(".")}


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path, text in modules().items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_no_file_is_longer_than_a_reader_can_hold_in_mind() -> None:
    lengths = {path: len(text.splitlines()) for path, text in modules().items()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}


def folders() -> dict[str, list[str]]:
    """The Python files of each folder of the product, but for `__init__.py`."""
    found: dict[str, list[str]] = {}
    for path in map(Path, modules()):
        if path.parts[0] in PACKAGES and path.name != "__init__.py":
            found.setdefault(str(path.parent), []).append(path.name)
    return found


def test_a_folder_has_no_more_files_than_a_reader_takes_in_at_once() -> None:
    crowded = {folder: len(files) for folder, files in folders().items() if len(files) > MOST_FILES}
    assert crowded.keys() - EQUALS == set()


def test_the_page_of_the_architecture_shows_every_wing_and_nothing_that_is_not_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = {path.rstrip("/") for path in re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/.]*)`", page)}
    wings = {"/".join(Path(folder).parts[:2]) for folder in folders() if "/" in folder}
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert wings - named == set()


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
