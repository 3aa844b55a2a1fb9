"""What every module of the project has in common. Who may import whom is the import contracts' (`make check`)."""

import ast
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from backplane import VERSION

ROOT = Path(__file__).parents[2]
LONGEST_FILE_LINES = 500
LONGEST_TEST_LINES = 600
LONG_TESTS = frozenset(
    {
        "tests/attack/test_faults_do_not_loop.py",
        "tests/attack/test_http_edge.py",
        "tests/attack/test_logs_leave_room_for_the_queue.py",
        "tests/attack/test_secrets_stay_secret.py",
        "tests/attack/test_step_limits.py",
        "tests/contracts/test_queue.py",
        "tests/contracts/test_slots.py",
        "tests/integration/checkout/test_attributes.py",
        "tests/integration/models/test_session.py",
        "tests/unit/test_agentctl_commands.py",
        "tests/unit/test_manifests.py",
    }
)
"""Lists of attacks on one wall, and of what one contract promises: they are read by a case, not as a whole."""
PACKAGES = ("agentctl", "app", "backplane", "controller", "standalone", "worker")
MOST_FILES = 12
MOST_PARAMETERS = 7
NAMED_BY_CALLERS = frozenset({"agentctl/commands", "app/routes"})
"""The parameters of these functions are options of commands and fields of queries, which no other code gives."""
IMPORTS_BY_NAME = frozenset({"agentctl/__main__.py"})
"""Where a module's name is data: the table of commands."""
_COST = re.compile(r"\d m?s\b")
_BEGINS_WITH_TEXT = re.compile(r'(\s*(#.*)?\n)*r?"""\S')
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


@cache
def modules() -> Mapping[str, str]:
    """Path and text of every Python file of the project. Folders with a dot are passed over: they have libraries."""
    own = [entry for entry in ROOT.iterdir() if not entry.name.startswith(".")]
    paths = [path for entry in own for path in (entry.rglob("*.py") if entry.is_dir() else [entry])]
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths) if path.suffix == ".py"}


@cache
def tree_of(text: str) -> ast.Module:
    return ast.parse(text)


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path, text in modules().items() if text.strip() and not _BEGINS_WITH_TEXT.match(text)] == []


def test_no_file_is_longer_than_a_reader_can_hold_in_mind() -> None:
    lengths = {path: len(text.splitlines()) for path, text in modules().items()}
    longest = {path: LONGEST_TEST_LINES if path in LONG_TESTS else LONGEST_FILE_LINES for path in lengths}
    assert {path: lines for path, lines in lengths.items() if lines > longest[path]} == {}
    assert {path for path in LONG_TESTS if lengths.get(path, 0) <= LONGEST_FILE_LINES} == set()


def test_no_function_has_more_parameters_than_a_caller_can_tell_apart() -> None:
    numbers: dict[str, int] = {}
    for path, text in modules().items():
        if Path(path).parts[0] not in PACKAGES or str(Path(path).parent) in NAMED_BY_CALLERS:
            continue
        for function in ast.walk(tree_of(text)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = function.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                several = [one for one in (arguments.vararg, arguments.kwarg) if one]
                own = [one for one in (*named, *several) if one.arg not in ("self", "cls")]
                numbers[f"{path}:{function.lineno} {function.name}"] = len(own)
    assert {name: number for name, number in numbers.items() if number > MOST_PARAMETERS} == {}


def test_a_module_is_imported_by_a_statement_unless_its_name_is_data() -> None:
    by_name = {path for path, text in modules().items() if "import_module(" in text or "__import__(" in text}
    assert {path for path in by_name if Path(path).parts[0] in PACKAGES} == IMPORTS_BY_NAME


def test_an_import_within_a_function_has_its_measured_cost_beside_it() -> None:
    silent = []
    for path, text in modules().items():
        if Path(path).parts[0] not in PACKAGES:
            continue
        lines = text.splitlines()
        for function in ast.walk(tree_of(text)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            imports = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            for node in imports:
                # In its own line, or in a comment above the first of several.
                above = lines[max(node.lineno - 3, 0) : node.end_lineno]
                if not any("#" in line and _COST.search(line) for line in above):
                    silent.append(f"{path}:{node.lineno}")
    assert silent == []


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


def test_each_migration_follows_the_one_before_it() -> None:
    """Two branches that are merged may have taken the same number, which no text conflict shows."""
    names = sorted(path.name for path in (ROOT / "backplane/store/migrations/versions").glob("v*.py"))
    assert [name[:5] for name in names] == [f"v{number:04}" for number in range(1, len(names) + 1)]
    for number, name in enumerate(names, start=1):
        text = (ROOT / "backplane/store/migrations/versions" / name).read_text()
        assert f'\nrevision = "{number:04}"\n' in text, name
        assert number == 1 or f'\ndown_revision = "{number - 1:04}"\n' in text, name
