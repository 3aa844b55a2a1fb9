"""Which paths a glob selects."""

import pytest

from worker.tools.globs import MAX_ALTERNATIVES, compile_glob, expand_braces

PATHS = ("main.py", "src/app.py", "src/web/view.py", "src/web/view.ts", "README.md", "a[1].txt", "{x}.txt", "src.py/b")

SELECTED = {
    "*.py": {"main.py", "src/app.py", "src/web/view.py"},
    "**/*.py": {"main.py", "src/app.py", "src/web/view.py"},
    "src/**/*.py": {"src/app.py", "src/web/view.py"},
    "src/*.py": {"src/app.py"},
    "./src/*.py": {"src/app.py"},
    "././src/*.py": {"src/app.py"},
    "/src/*.py": {"src/app.py"},
    "src/": {"src/app.py", "src/web/view.py", "src/web/view.ts"},
    "src/**": {"src/app.py", "src/web/view.py", "src/web/view.ts"},
    "**/web/**": {"src/web/view.py", "src/web/view.ts"},
    "src/**/**/view.*": {"src/web/view.py", "src/web/view.ts"},
    "**": set(PATHS),
    "*": set(PATHS),
    "*.{py,ts}": {"main.py", "src/app.py", "src/web/view.py", "src/web/view.ts"},
    "{src,lib}/**/*.{ts,tsx}": {"src/web/view.ts"},
    "{main,src/app}.py": {"main.py", "src/app.py"},
    "m{ai,}n.py": {"main.py"},
    "m?in.[pq]y": {"main.py"},
    "[!m]*.py": {"src/app.py", "src/web/view.py"},
    "a[[]1].txt": {"a[1].txt"},
    "{x}.txt": {"{x}.txt"},
    "{x,y.txt": set(),
    "MAIN.PY": set(),
    "src": set(),
    "web/*.py": set(),
    "": set(),
}


@pytest.mark.parametrize(("glob", "selected"), SELECTED.items(), ids=SELECTED)
def test_a_glob_selects_these_paths(glob: str, selected: set[str]) -> None:
    assert set(filter(compile_glob(glob), PATHS)) == selected


def test_braces_within_braces_are_written_out() -> None:
    assert expand_braces("a{b,c{d,e}}f") == ["abf", "acdf", "acef"]


def test_as_many_alternatives_as_are_taken_can_be_written_and_no_more() -> None:
    assert len(expand_braces("{" + ",".join("x" * MAX_ALTERNATIVES) + "}")) == MAX_ALTERNATIVES
    with pytest.raises(ValueError, match="more than 100 globs"):
        compile_glob("{a,b}" * 20)


def test_stars_without_end_take_no_time_without_end() -> None:
    assert not compile_glob("*a" * 149)("a" * 899 + "b")
    assert not compile_glob("**/" * 90 + "x")("/".join("a" * 64))
