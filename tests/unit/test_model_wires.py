"""What needs no server to be seen of the wires."""

import pytest


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1", "http://gpu:8000/v1"),
        ("http://gpu:8000/openai", "http://gpu:8000/openai/v1"),
        ("http://gpu/api/v3", "http://gpu/api/v3"),
        ("http://v1:8000", "http://v1:8000/v1"),
    ],
)
def test_a_url_gets_the_version_that_it_lacks(given: str, used: str) -> None:
    from worker.llm.openai import base_url_of  # noqa: PLC0415 - takes 0.7 s

    assert base_url_of(given) == used
