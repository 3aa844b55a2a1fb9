"""Settings that do not fit together are refused, and secrets stay where they are."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backplane.process.log import complaint
from backplane.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")

SECRET = "hunter2-correct-horse"


@pytest.fixture
def with_secrets(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@127.0.0.1:6379/0")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://agent:{SECRET}@127.0.0.1/agent")
    monkeypatch.setenv("S3_BUCKET", "bucket")
    monkeypatch.setenv("S3_ACCESS_KEY", SECRET)
    monkeypatch.setenv("S3_SECRET_KEY", SECRET)
    return Settings()


def wrong(**values: Any) -> ValidationError:
    with pytest.raises(ValidationError) as refused:
        Settings(**values)
    return refused.value


def test_the_defaults_fit_together() -> None:
    assert Settings().lease_seconds >= 2 * Settings().heartbeat_seconds


def test_the_environment_wins_over_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("WORKER_CONCURRENCY=3\nLEASE_SECONDS=40\n")
    monkeypatch.setenv("WORKER_CONCURRENCY", "7")
    assert (Settings().worker_concurrency, Settings().lease_seconds) == (7, 40)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"lease_seconds": 1.9, "heartbeat_seconds": 1.0}, ["LEASE_SECONDS", "HEARTBEAT_SECONDS"]),
        (
            {"run_timeout_seconds": 20, "run_timeout_max_seconds": 10},
            ["RUN_TIMEOUT_SECONDS", "RUN_TIMEOUT_MAX_SECONDS"],
        ),
        ({"run_max_retries": 3, "run_max_retries_limit": 2}, ["RUN_MAX_RETRIES", "RUN_MAX_RETRIES_LIMIT"]),
        ({"s3_bucket": "b", "s3_access_key": "only"}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
        ({"s3_bucket": "b", "s3_secret_key": "only"}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_their_names(
    values: dict[str, Any], names: list[str]
) -> None:
    message = complaint(wrong(**values))
    assert all(name in message for name in names)


def test_a_lease_of_exactly_two_heartbeats_is_allowed() -> None:
    assert Settings(lease_seconds=2.0, heartbeat_seconds=1.0).lease_seconds == 2.0


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.lease_seconds = 1.0


@pytest.mark.parametrize("show", [repr, str, Settings.model_dump_json, lambda settings: str(settings.model_dump())])
def test_no_text_made_of_settings_shows_a_secret(with_secrets: Settings, show: Any) -> None:
    assert SECRET not in show(with_secrets)


def test_no_log_line_of_settings_shows_a_secret(with_secrets: Settings, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("settings: %s %r", with_secrets, with_secrets)
    assert caplog.text
    assert SECRET not in caplog.text


def test_a_complaint_names_the_variable_and_shows_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", SECRET)
    monkeypatch.setenv("LEASE_SECONDS", "-5")
    with pytest.raises(ValidationError) as refused:
        Settings()
    message = complaint(refused.value)
    assert "WORKER_CONCURRENCY: " in message
    assert "LEASE_SECONDS: " in message
    assert SECRET not in message
    assert "-5" not in message


def test_a_complaint_about_the_whole_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "bucket")
    monkeypatch.setenv("S3_ACCESS_KEY", SECRET)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert SECRET not in complaint(refused.value)


def test_an_engine_may_have_options_but_no_open_quote() -> None:
    options = "podman --log-level 'error'"
    assert Settings(sandbox_container_engine=options).sandbox_container_engine == options
    assert "SANDBOX_CONTAINER_ENGINE" in complaint(wrong(sandbox_container_engine="podman --log-level 'error"))


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("path", ["/agents", "/a/b", "/agent-platform", ""])
def test_the_api_may_be_served_below_a_path(path: str) -> None:
    assert Settings.model_validate({"api_root_path": path}).api_root_path == path


@pytest.mark.parametrize("path", ["agents", "/agents/", "/", "/agent", "/agent/x", "/docs", "/health", "/mcp", "/a b"])
def test_a_path_of_the_api_itself_or_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"API_ROOT_PATH|api_root_path"):
        Settings.model_validate({"api_root_path": path})
