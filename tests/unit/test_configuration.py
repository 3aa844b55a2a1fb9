"""What is said of a `.env` and an environment that cannot be read, and of names that look like settings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from backplane.configuration import NO_LONGER_USED, log_misspelt, misspelt, read_settings
from backplane.errors import InvalidInput
from backplane.settings import Settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A=1\nB=\xff\n", "line 2"),
        ("LEASE_SECONDS=15\n".encode("utf-16"), "line 1"),
        (b"MODEL_SERVERS=not json\n", "MODEL_SERVERS"),
        (b"LEASE_SECONDS=x\n", "LEASE_SECONDS"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_with_its_line_or_name(content: bytes, said: str) -> None:
    Path(".env").write_bytes(content)
    with pytest.raises(InvalidInput, match=said):
        read_settings()


def test_a_value_is_not_shown_when_its_file_cannot_be_read() -> None:
    Path(".env").write_bytes(b"REDIS_PASSWORD=hush-hush\xff\n")
    with pytest.raises(InvalidInput) as refused:
        read_settings()
    assert "hush-hush" not in refused.value.message


def test_a_loop_of_links_is_a_sentence() -> None:
    Path(".env").symlink_to(".env")
    assert _ends_in_a_sentence(read_settings)


def _ends_in_a_sentence(read: Callable[[], Settings]) -> bool:
    try:
        read()
    except InvalidInput as error:
        return ".env" in error.message
    return True


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    Path(".env").write_bytes("\ufeffWORKER_CONCURRENCY=3\n".encode())
    assert read_settings().worker_concurrency == 3


MISSPELT = {
    "DATABSE_URL": "DATABASE_URL",
    "DATABASE_URI": "DATABASE_URL",
    "REDISURL": "REDIS_URL",
    "redis_ulr": "REDIS_URL",
    "WORKER_CONCURENCY": "WORKER_CONCURRENCY",
    "WORKERS_CONCURRENCY": "WORKER_CONCURRENCY",
    "S3_ACCESS_KEY_ID": "S3_ACCESS_KEY",
    "LOGLEVEL": "LOG_LEVEL",
    "OPENAI_APIKEY": "OPENAI_API_KEY",
    "MODEL_SERVER": "MODEL_SERVERS",
    "STEP_TIMEOUT": "STEP_TIMEOUT_SECONDS",
    "step_timeout_ms": "STEP_TIMEOUT_SECONDS",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_name_that_looks_like_a_setting_is_reported_with_the_setting(name: str) -> None:
    assert [one.meant for one in misspelt(Settings(), {name: "x"})] == [MISSPELT[name]]
    Path(".env").write_text(f"{name}=x\n")
    assert [(one.where, one.meant) for one in misspelt(Settings(), {})] == [(".env", MISSPELT[name])]


OTHERS = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TERM",
    "SHELL",
    "USER",
    "PWD",
    "EDITOR",
    "HTTP_PROXY",
    "NO_PROXY",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "POSTGRES_PASSWORD",
    "PGPASSWORD",
    "GITHUB_TOKEN",
    "KUBERNETES_SERVICE_HOST",
    "REDIS_PORT_6379_TCP",
    "OPENAI_BASE_URL",
    "ANTHROPIC_BASE_URL",
    "OLLAMA_HOST",
    "GROQ_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "WORKSPACE",
    "HOSTNAME",
    "PORT",
    "AGENT_URL",
    "AGENT_TOKEN",
]


def test_what_is_not_ours_and_what_is_a_setting_is_passed_over() -> None:
    settings = [name.upper() for name in Settings.model_fields] + list(Settings.model_fields)
    assert [one.name for one in misspelt(Settings(), dict.fromkeys([*OTHERS, *settings], "x"))] == []


def test_a_name_that_a_model_server_reads_is_passed_over() -> None:
    servers = {"mine": {"base_url": "http://127.0.0.1:1", "api_key_env": "OPENAI_API_KEY2"}}
    assert misspelt(Settings(model_servers=servers), {"OPENAI_API_KEY2": "x"}) == []
    assert len(misspelt(Settings(), {"OPENAI_API_KEY2": "x"})) == 1


def test_a_name_that_stands_twice_is_reported_once() -> None:
    Path(".env").write_text("REDISURL=x\n")
    assert len(misspelt(Settings(), {"REDISURL": "x"})) == 1


@pytest.mark.parametrize("name", ["PROMPT_MAX_CHARS", "agent_result_chars"])
def test_a_name_that_was_a_setting_once_is_reported_as_no_longer_used(name: str) -> None:
    [found] = misspelt(Settings(), {name: "1"})
    assert f"{name} in the environment is no longer used: it is fixed at" in str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETENTION_SECONDS", "300.0"),
        ("METADATA_MAX_BYTES", "16384"),
        ("WEBHOOK_LEASE_SECONDS", "60, or twice WEBHOOK_TIMEOUT_SECONDS where that is more"),
    ],
)
def test_the_report_of_a_name_that_was_a_setting_once_says_at_which_value_it_is_fixed(name: str, value: str) -> None:
    Path(".env").write_text(f"{name}=7\n")
    settings = read_settings()
    assert [str(one) for one in misspelt(settings, {})] == [
        f"{name} in .env is no longer used: it is fixed at {value}, and the line can be deleted"
    ]
    with structlog.testing.capture_logs() as lines:
        log_misspelt(settings)
    assert [(line["log_level"], line["name"]) for line in lines] == [("warning", name)]


def test_a_name_is_a_setting_or_no_longer_used_and_never_both() -> None:
    assert NO_LONGER_USED.keys() & {name.upper() for name in Settings.model_fields} == set()
