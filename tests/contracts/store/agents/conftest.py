"""Agents on SQLite, and in the long suite on PostgreSQL too. What happens at once (`test_agents_at_once`) is tried on
both each time, as it is there that they differ."""

import pytest


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_database")
    return url
