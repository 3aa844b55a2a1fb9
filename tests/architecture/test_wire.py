"""The names that users rely on stay as they were committed, whatever is renamed behind them."""

import json

import pytest

from checks.wire import lines, main, metrics_in, without_texts


@pytest.mark.slow  # it builds the API's whole description and loads every command
def test_what_users_rely_on_is_as_it_was_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_texts_of_a_description_are_left_out_but_fields_of_the_same_names_are_kept() -> None:
    described = {
        "title": "A title",
        "description": "A text",
        "properties": {"title": {"type": "string", "description": "A text"}, "description": {"type": "string"}},
    }
    kept = {"properties": {"title": {"type": "string"}, "description": {"type": "string"}}}
    assert without_texts(described) == kept


def test_the_committed_files_are_json_with_a_line_for_each_member() -> None:
    value = {"a": {"b": 1, "c": [1, {"d": None}]}, "e": {}}
    made = lines(value, 2)
    assert json.loads("\n".join(made)) == value
    assert [line.strip() for line in made if '"c"' in line] == ['"c": [1, {"d": null}]']


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('Counter("agent_a", "Text.", ["x", "y"], registry=r)', [("agent_a", ["x", "y"])]),
        ('GaugeMetricFamily("agent_b", "Text.", labels=["x"])', [("agent_b", ["x"])]),
        ('Histogram("agent_c", "Text.", buckets=[1, 2], registry=r)', [("agent_c", [])]),
        ("Counter(await pipeline.execute())", []),
    ],
)
def test_metrics_are_found_with_their_labels(source: str, found: list[tuple[str, list[str]]]) -> None:
    assert list(metrics_in(source)) == found
