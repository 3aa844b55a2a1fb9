"""What every module of the project has in common. Who may import whom is the import contracts' (`make check`)."""

import ast
import tomllib
from pathlib import Path

from backplane import VERSION

ROOT = Path(__file__).parents[2]
LONGEST_FILE_LINES = 600


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


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
