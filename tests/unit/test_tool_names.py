"""Names of tools as models and plans take them: each tool has one, and no two have the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tools.names import model_names, plan_names

FOR_MODELS = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
FOR_PLANS = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@pytest.mark.parametrize(
    ("name", "for_models", "for_plans"),
    [
        ("shell", "shell", "shell"),
        ("docs__search", "docs__search", "docs__search"),
        ("docs__files.search", "docs__files_search", "docs__files.search"),
        ("docs__repo/search", "docs__repo_search", "docs__repo_search"),
        ("docs__find all!", "docs__find_all_", "docs__find_all_"),
        ("docs__suche-für", "docs__suche-f_r", "docs__suche-f_r"),
        ("3d__render", "_3d__render", "3d__render"),
        ("d" * 64, "d" * 64, "d" * 64),
    ],
)
def test_a_name_is_changed_as_little_as_has_to_be(name: str, for_models: str, for_plans: str) -> None:
    assert model_names([name]) == {name: for_models}
    assert plan_names([name]) == {name: for_plans}


def test_names_that_would_be_the_same_are_told_apart() -> None:
    found = model_names(["a.b", "a/b", "a_b", "c.d"])
    assert found["a_b"] == "a_b"
    assert found["c.d"] == "c_d"
    assert len(set(found.values())) == 4
    assert all(FOR_MODELS.fullmatch(name) for name in found.values())


def test_a_long_name_keeps_its_beginning() -> None:
    one, two = model_names(["x" * 63 + ".a", "x" * 100]).values()
    assert one.startswith("x" * 57 + "_")
    assert two.startswith("x" * 57 + "_")
    assert one != two


def test_a_name_stays_the_same_when_others_come() -> None:
    assert model_names(["a.b", "z"])["a.b"] == model_names(["0", "a.b", "y.y", "z"])["a.b"]


NAMES = st.one_of(st.text(max_size=80), st.text("a._-/0", max_size=4), st.text("a.", min_size=60, max_size=70))


@given(st.lists(NAMES))
def test_whatever_the_names_are_each_has_one_of_its_own(names: list[str]) -> None:
    for found, pattern in ((model_names(names), FOR_MODELS), (plan_names(names), FOR_PLANS)):
        assert set(found) == set(names)
        assert len(set(found.values())) == len(found)
        assert all(pattern.fullmatch(new) for name, new in found.items() if name)
