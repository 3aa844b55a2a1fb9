"""Searches over a real workspace."""

import pytest

from backplane.errors import InvalidInput, InvalidPlan, NotFound
from tests.tool_bench import MIB, Bench
from worker.tools import search_files


async def fill(bench: Bench, **files: bytes) -> None:
    for path, content in files.items():
        await bench.context.workspace.put(path.replace("__", "/").replace("_", "."), content)


async def said(bench: Bench, **arguments: object) -> list[str]:
    result = await bench.step("search_files", **arguments)
    assert result.exit_code == 0
    return bench.said.decode().splitlines()


async def test_lines_are_shown_with_their_files_and_numbers(bench: Bench) -> None:
    await fill(bench, a_py=b"import os\nx = 1\n", src__b_py=b"y = 2\r\nimport sys", c_md=b"text\n")
    assert await said(bench, pattern=r"^import (\w+)") == [
        "a.py:1: import os",
        "src/b.py:2: import sys",
        "2 lines match in 2 of 3 files",
    ]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ({"pattern": "IMPORT", "ignore_case": True}, 2),
        ({"pattern": "IMPORT"}, 0),
        ({"pattern": "import", "glob": "*.py", "folder": "src"}, 1),
        ({"pattern": "import", "folder": "."}, 2),
        ({"pattern": "import", "folder": "./"}, 2),
        ({"pattern": "import", "folder": "src/"}, 1),
        ({"pattern": "import", "folder": "./src"}, 1),
        ({"pattern": "import", "folder": "./src/b.py"}, 1),
        ({"pattern": "import", "glob": "src/*.py"}, 1),
        ({"pattern": "import", "glob": "*.md"}, 0),
        ({"pattern": "import", "glob": "**/*.py"}, 2),
        ({"pattern": "import", "glob": "./src/**/*.{py,pyi}"}, 1),
        ({"pattern": "import", "max_matches": 1}, 1),
        ({"pattern": "x.", "literal": True}, 0),
        ({"pattern": "= 1", "literal": True}, 1),
        ({"pattern": "IMPORT S", "literal": True, "ignore_case": True}, 1),
        ({"pattern": "grün", "ignore_case": True}, 1),
    ],
)
async def test_what_is_searched_for_and_where_can_be_said(
    bench: Bench, arguments: dict[str, object], lines: int
) -> None:
    await fill(bench, a_py=b"import os\nx = 1\n", src__b_py=b"y = 2\r\nimport sys", c_md="GRÜN\n".encode())
    assert len(await said(bench, **arguments)) == lines + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"glob": "*.rs"}, r"none of the 2 files fits '\*\.rs'; there are: a\.py, src/b\.py"),
        ({"glob": "*.py", "folder": "docs"}, "no file below 'docs'"),
        ({"folder": "sr"}, "no file below 'sr'"),
    ],
)
async def test_a_search_in_no_file_is_an_error_that_names_what_there_is(
    bench: Bench, arguments: dict[str, object], words: str
) -> None:
    await fill(bench, a_py=b"x\n", src__b_py=b"x\n")
    with pytest.raises(NotFound, match=words):
        await bench.step("search_files", pattern="x", **arguments)


async def test_a_glob_with_too_many_alternatives_is_refused_with_the_plan(bench: Bench) -> None:
    with pytest.raises(InvalidPlan, match="more than 100 globs"):
        await bench.step("search_files", pattern="x", glob="{a,b}" * 20)


async def test_context_is_shown_once_and_gaps_are_marked(bench: Bench) -> None:
    await fill(bench, a=b"".join(b"%d\n" % number for number in range(1, 13)))
    assert (await said(bench, pattern="^(3|5|11)$", context=1))[:-1] == [
        "a-2- 2",
        "a:3: 3",
        "a-4- 4",
        "a:5: 5",
        "a-6- 6",
        "--",
        "a-10- 10",
        "a:11: 11",
        "a-12- 12",
    ]


async def test_binary_files_are_left_out_and_it_says_so(bench: Bench) -> None:
    await fill(bench, a=b"find me\n", b=b"find me\0\n")
    assert await said(bench, pattern="find") == [
        "a:1: find me",
        "1 lines match in 1 of 2 files; 1 binary files left out",
    ]


async def test_a_long_line_is_shown_around_its_match(bench: Bench) -> None:
    await fill(bench, a=b"x" * 5000 + b"needle" + b"y" * 5000)
    line = (await said(bench, pattern="needle"))[0]
    assert "needle" in line
    assert len(line) < 500


async def test_a_line_without_end_is_searched_at_its_beginning_and_the_next_one_is_found(bench: Bench) -> None:
    await fill(bench, a=b"first" + b"x" * 2 * MIB + b"late\nsecond\n")
    assert [line.split(": ")[0] for line in (await said(bench, pattern="first|late|second"))[:-1]] == ["a:1", "a:2"]


async def test_large_files_and_too_much_in_all_are_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(bench, a=b"x" * 100, b=b"x" * 10, c=b"x" * 10)
    monkeypatch.setattr(search_files, "MAX_FILE_BYTES", 50)
    monkeypatch.setattr(search_files, "MAX_SCANNED_BYTES", 15)
    summary = (await said(bench, pattern="x"))[-1]
    assert summary.startswith("1 lines match in 1 of 1 files; 1 files over 50 bytes left out; the limit of 15 bytes")


async def test_a_pattern_that_takes_for_ever_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_files, "MAX_SECONDS", 0.2)
    await fill(bench, a=b"a" * 60 + b"!\n")
    with pytest.raises(InvalidInput, match="simpler"):
        await bench.step("search_files", pattern=r"^(a|aa|aaa)+\1+b?(?<!x)$(?:a|b)*c|^(([a-z])+.)+[A-Z]([a-z])+$")


async def test_many_lines_share_the_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_files, "MAX_SECONDS", 0.001)
    await fill(bench, a=b"a\n" * 100_000)
    with pytest.raises(InvalidInput, match="simpler"):
        await bench.step("search_files", pattern="b")


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "[",
        "a{1000000000}",
        "((a{1000}){1000}){1000}",
        "a{2,99999999999999}",
        "(?P<n>a)(?P=m)",
        "(" * 400 + ")" * 400,
    ],
)
async def test_a_pattern_that_cannot_be_is_refused_with_the_plan(bench: Bench, pattern: str) -> None:
    with pytest.raises(InvalidPlan):
        await bench.step("search_files", pattern=pattern)
