"""Model servers and prices, as the settings have them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backplane.domain.models import ModelName
from backplane.errors import InvalidInput
from backplane.settings import Settings
from worker.llm.catalogue import FREE, ServerSpec, prices_of, servers_of
from worker.llm.gateway import TokenRates


def given(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.fixture(autouse=True)
def no_servers_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MODEL_SERVERS", "MODEL_PRICES"):
        monkeypatch.delenv(name, raising=False)


def test_a_models_own_name_may_hold_slashes_and_colons() -> None:
    name = ModelName.parse("gpu/Qwen/Qwen2.5-7B:q4")
    assert (name.server, name.model, str(name)) == ("gpu", "Qwen/Qwen2.5-7B:q4", "gpu/Qwen/Qwen2.5-7B:q4")


@pytest.mark.parametrize("text", ["", "llama", "/llama", "ollama/", "  ", "a/" + "m" * 201, "s" * 65 + "/m", "a/m\x00"])
def test_what_names_no_server_is_no_model(text: str) -> None:
    with pytest.raises(InvalidInput, match="SERVER/NAME") as raised:
        ModelName.parse(text, "MODEL")
    assert raised.value.field == "MODEL"


def test_without_settings_there_is_no_server() -> None:
    assert servers_of(given(), {}) == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://gpu:11434/", "http://gpu:11434"),
        ("gpu:8080", "http://gpu:8080"),
        ("gpu", "http://gpu:11434"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("https://models.example.org/ollama", "https://models.example.org/ollama"),
    ],
)
def test_ollamas_host_is_read_as_its_own_programs_read_it(host: str, url: str) -> None:
    assert servers_of(given(ollama_host=host), {})["ollama"].url == url


def test_ollama_gets_no_more_than_its_settings_say() -> None:
    server = servers_of(given(ollama_host="gpu", ollama_num_parallel=3, ollama_max_loaded_models=1), {})["ollama"]
    assert (server.slots, server.max_loaded, server.keep_alive) == (3, 1, "5m")


def test_a_key_makes_a_hosted_server_and_shows_nowhere() -> None:
    servers = servers_of(given(openai_api_key=SecretStr("sk-o"), anthropic_api_key=SecretStr("sk-a")), {})
    assert {name: (server.kind, server.slots) for name, server in servers.items()} == {
        "openai": ("openai", 0),
        "anthropic": ("anthropic", 0),
    }
    assert "sk-" not in repr(servers)


def test_a_servers_key_comes_from_the_environment() -> None:
    entry = {"kind": "openai", "url": "http://gpu:8000/v1/", "slots": 8, "api_key_env": "GPU_KEY"}
    server = servers_of(given(model_servers={"gpu": entry}), {"GPU_KEY": "sk-g"})["gpu"]
    assert (server.url, server.slots) == ("http://gpu:8000/v1", 8)
    assert server.api_key is not None
    assert server.api_key.get_secret_value() == "sk-g"


def test_a_key_that_is_not_in_the_environment_is_reported() -> None:
    entry = {"kind": "openai", "url": "http://gpu:8000", "api_key_env": "GPU_KEY"}
    with pytest.raises(InvalidInput, match=r"MODEL_SERVERS\.gpu: GPU_KEY is neither in the environment nor in \.env"):
        servers_of(given(model_servers={"gpu": entry}), {})


@pytest.mark.parametrize(
    ("file", "variable", "key"),
    [
        ("GPU_KEY=sk-file\n", None, "sk-file"),
        ("export GPU_KEY='sk-file'  # note\n", None, "sk-file"),
        ("GPU_KEY=sk-file\n", "sk-environment", "sk-environment"),
        ("", "sk-environment", "sk-environment"),
        ("GPU_KEY=sk-file\n", "", None),
        ("GPU_KEY=\n", None, None),
        ("GPU_KEY\n", None, None),
        ("gpu_key=sk-file\n", None, None),
    ],
)
def test_a_key_may_stand_in_the_env_file_and_the_environment_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, variable: str | None, key: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(file)
    monkeypatch.delenv("GPU_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("GPU_KEY", variable)
    settings = given(model_servers={"gpu": {"kind": "openai", "url": "http://gpu:8000", "api_key_env": "GPU_KEY"}})
    if key is None:
        with pytest.raises(InvalidInput, match="GPU_KEY is neither"):
            servers_of(settings)
        return
    server = servers_of(settings)["gpu"]
    assert server.api_key is not None
    assert server.api_key.get_secret_value() == key


@pytest.mark.parametrize(
    ("url", "local", "is_local"),
    [
        ("http://127.0.0.1:8000", None, True),
        ("http://127.1:8000/v1", None, True),
        ("http://localhost:11434", None, True),
        ("http://LOCALHOST.:11434", None, True),
        ("http://[::1]:8000", None, True),
        ("http://ollama.localhost", None, True),
        ("http://10.0.0.10:8000", None, False),
        ("https://api.openai.com/v1", None, False),
        ("http://localhost.example.org", None, False),
        ("http://127.0.0.1:8000", False, False),
        ("http://10.0.0.10:8000", True, True),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "ollama", "anthropic"])
def test_a_server_on_a_loopback_address_is_local_unless_it_is_declared_otherwise(
    kind: str, url: str, local: bool | None, is_local: bool
) -> None:
    entry = {"kind": kind, "url": url} | ({} if local is None else {"local": local})
    assert servers_of(given(model_servers={"there": entry}), {})["there"].is_local is is_local


def test_the_servers_that_their_own_settings_make_are_local_by_their_addresses() -> None:
    key = SecretStr("sk")
    here = given(ollama_host="0.0.0.0", openai_api_key=key, openai_base_url="http://localhost:4000")
    assert {name: server.is_local for name, server in servers_of(here, {}).items()} == {"ollama": True, "openai": True}
    there = given(ollama_host="gpu", openai_api_key=key, anthropic_api_key=key)
    assert not any(server.is_local for server in servers_of(there, {}).values())


LOCAL, ELSEWHERE = (ServerSpec("one", "openai", "http://x", is_local=is_local) for is_local in (True, False))


@pytest.mark.parametrize(
    ("agent", "user", "spec", "rates"),
    [
        (None, None, LOCAL, {"agent": 10, "user": 10}),
        (None, None, ELSEWHERE, {}),
        (0, 0, LOCAL, {}),
        (0, None, LOCAL, {"user": 10}),
        (20, None, ELSEWHERE, {"agent": 20}),
        (None, 5, ELSEWHERE, {"user": 5}),
        (20, 30, LOCAL, {"agent": 20, "user": 30}),
    ],
)
def test_a_rate_that_is_set_holds_everywhere_and_the_default_where_processors_are_shared(
    agent: float | None, user: float | None, spec: ServerSpec, rates: dict[str, float]
) -> None:
    buckets = TokenRates(agent, 100, user, 200).buckets("ada", "default", spec)
    assert {bucket.name.partition(":")[0]: bucket.per_second for bucket in buckets} == rates


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "openai"}, r"MODEL_SERVERS\.gpu\.url"),
        ({"kind": "grpc", "url": "http://gpu"}, r"MODEL_SERVERS\.gpu\.kind"),
        ({"kind": "openai", "url": "http://gpu", "slot": 3}, r"MODEL_SERVERS\.gpu\.slot"),
        ({"kind": "openai", "url": "http://gpu", "slots": -1}, r"MODEL_SERVERS\.gpu\.slots"),
        ({"kind": "openai", "url": "gpu:8000"}, "no URL"),
        ({"kind": "openai", "url": "ftp://gpu"}, "no URL"),
        ({"kind": "openai", "url": "http://user:hunter2@gpu"}, "api_key_env"),
        ({"kind": "openai", "url": "http://gpu?key=hunter2"}, "api_key_env"),
    ],
)
def test_a_server_that_cannot_be_is_reported_by_its_name(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as raised:
        servers_of(given(model_servers={"gpu": entry}), {})
    assert raised.value.field == "MODEL_SERVERS"
    assert "hunter2" not in str(raised.value)


def test_an_entry_goes_before_a_server_that_other_settings_make() -> None:
    entry = {"kind": "openai", "url": "http://proxy:4000", "slots": 16}
    servers = servers_of(given(openai_api_key=SecretStr("sk-o"), model_servers={"openai": entry}), {})
    assert (servers["openai"].url, servers["openai"].slots) == ("http://proxy:4000", 16)


def test_a_price_is_for_a_million_tokens_and_is_rounded_up() -> None:
    prices = prices_of(given(model_prices={"openai/m": {"input": 0.1, "output": 10}}))
    price = prices.of(ModelName("openai", "m"))
    assert price is not None
    assert price.micro_usd(1_000_000, 0) == 100_000
    assert price.micro_usd(10, 0) == 1
    assert price.micro_usd(11, 0) == 2
    assert price.micro_usd(0, 3) == 30


def test_a_server_may_have_one_price_for_all_its_other_models() -> None:
    prices = prices_of(given(model_prices={"gpu/*": {"input": 0, "output": 0}, "gpu/big": {"input": 1, "output": 1}}))
    assert [
        price and price.micro_usd(1, 1) for price in (prices.of(ModelName("gpu", n)) for n in ("small", "big"))
    ] == [
        0,
        2,
    ]


def test_ollamas_models_cost_nothing_and_others_what_nobody_knows() -> None:
    mine = {"kind": "ollama", "url": "http://gpu"}
    prices = prices_of(given(model_servers={"mine": mine, "gpu": {"kind": "openai", "url": "http://gpu"}}))
    assert prices.of(ModelName("ollama", "m")) == prices.of(ModelName("mine", "m")) == FREE
    assert prices.of(ModelName("gpu", "m")) is None


@pytest.mark.parametrize(
    "price", [{"input": 1}, {"input": -1, "output": 1}, {"input": 1, "output": float("inf")}, {"in": 1, "output": 2}]
)
def test_a_price_that_cannot_be_is_reported(price: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=r"MODEL_PRICES\.openai/m"):
        prices_of(given(model_prices={"openai/m": price}))


def test_a_price_names_its_model_in_full() -> None:
    with pytest.raises(InvalidInput, match="SERVER/NAME"):
        prices_of(given(model_prices={"m": {"input": 1, "output": 1}}))
