"""Which model servers there are, what each can take, and what a model costs, as the settings have it.

The settings are read once when a worker starts. What is wrong is reported then, with the names of the settings. No
server is asked here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from backplane.credentials import variables
from backplane.domain.models import SERVER_CHARS, ModelName
from backplane.domain.validation_messages import sentence_of
from backplane.errors import InvalidInput
from backplane.net.addresses import written_address
from backplane.settings import ENV_FILE, Settings

Kind = Literal["ollama", "openai", "anthropic"]
Given = TypeVar("Given", bound=BaseModel)

OLLAMA_PORT = 11434


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """`slots`: calls that it gets at once, of all workers; `max_loaded`: different models at once. 0: any number.
    `keep_alive` is Ollama's. `is_local`: its models run on the processors that the workers have too. `certificate`: the
    only one that is trusted for it, as PEM, whatever its names; empty: those that the system trusts."""

    name: str
    kind: Kind
    url: str
    api_key: SecretStr | None = None
    slots: int = 0
    max_loaded: int = 0
    keep_alive: str | None = None
    is_local: bool = False
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of tokens, in dollars for a million."""

    input: Decimal
    output: Decimal

    def micro_usd(self, input_tokens: int, output_tokens: int) -> int:
        """The price of a call in millionths of a dollar, rounded up."""
        # Dollars for a million tokens are millionths of a dollar for one.
        exact = self.input * input_tokens + self.output * output_tokens
        return int(exact.to_integral_value(ROUND_CEILING))


FREE = Price(Decimal(0), Decimal(0))


class Prices:
    """Ollama's models cost nothing unless MODEL_PRICES says otherwise; another model that is not in it has no price."""

    def __init__(self, prices: Mapping[str, Price], free_servers: frozenset[str]) -> None:
        self._prices = prices
        self._free_servers = free_servers

    def of(self, name: ModelName) -> Price | None:
        """The price of this model; None: it is not known. `SERVER/*` in MODEL_PRICES stands for all other models of the
        server."""
        found = self._prices.get(str(name)) or self._prices.get(f"{name.server}/*")
        return found or (FREE if name.server in self._free_servers else None)


class _GivenServer(BaseModel):
    """An entry of MODEL_SERVERS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    url: str
    slots: int = Field(4, ge=0, le=10_000)
    max_loaded: int | None = Field(None, ge=0, le=1000)
    keep_alive: str | None = None
    api_key_env: str | None = Field(None, min_length=1)
    local: bool | None = None


class _GivenPrice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0, allow_inf_nan=False)
    output: Decimal = Field(ge=0, allow_inf_nan=False)


def servers_of(settings: Settings, environment: Mapping[str, str] | None = None) -> dict[str, ServerSpec]:
    """The servers by name. An entry of MODEL_SERVERS goes before a server of the same name that other settings make.
    `environment` holds the keys that `api_key_env` names; the process's own and `.env` when it is left out.

    Raises InvalidInput, whose `field` is the setting."""
    environment = variables() if environment is None else environment
    servers: dict[str, ServerSpec] = {}
    if settings.ollama_host:
        url = _checked_url(_ollama_url(settings.ollama_host), "OLLAMA_HOST")
        servers["ollama"] = ServerSpec(
            "ollama",
            "ollama",
            url,
            slots=settings.ollama_num_parallel,
            max_loaded=settings.ollama_max_loaded_models,
            keep_alive=settings.ollama_keep_alive,
            is_local=_is_loopback(url),
        )
    if settings.openai_api_key.get_secret_value():
        url = _checked_url(settings.openai_base_url, "OPENAI_BASE_URL")
        servers["openai"] = ServerSpec("openai", "openai", url, settings.openai_api_key, is_local=_is_loopback(url))
    if settings.anthropic_api_key.get_secret_value():
        url = _checked_url(settings.anthropic_base_url, "ANTHROPIC_BASE_URL")
        servers["anthropic"] = ServerSpec(
            "anthropic", "anthropic", url, settings.anthropic_api_key, is_local=_is_loopback(url)
        )
    for name, entry in settings.model_servers.items():
        servers[name] = _given_server(name, entry, settings, environment)
    return servers


def prices_of(settings: Settings) -> Prices:
    """Raises InvalidInput, whose `field` is MODEL_PRICES."""
    prices: dict[str, Price] = {}
    for name, entry in settings.model_prices.items():
        ModelName.parse(name, "MODEL_PRICES")
        # It goes by the decimal text: 0.1 is meant as a tenth, not as the nearest binary fraction.
        given = _validated(
            _GivenPrice, {key: str(value) for key, value in entry.items()}, "MODEL_PRICES", f"MODEL_PRICES.{name}"
        )
        prices[name] = Price(given.input, given.output)
    free = {name for name, entry in settings.model_servers.items() if entry.get("kind") == "ollama"}
    if "ollama" not in settings.model_servers:
        free.add("ollama")
    if settings.gpu_provider:
        free.add(settings.gpu_model_server)  # its machines are paid for by the hour
    return Prices(prices, frozenset(free))


def _given_server(
    name: str, entry: Mapping[str, Any], settings: Settings, environment: Mapping[str, str]
) -> ServerSpec:
    where = f"MODEL_SERVERS.{name}"
    if not name or "/" in name or len(name) > SERVER_CHARS or not name.isprintable():
        raise InvalidInput(
            f"{where}: a server's name has 1 to 64 characters and no slash; the models follow after it",
            field="MODEL_SERVERS",
        )
    given = _validated(_GivenServer, entry, "MODEL_SERVERS", where)
    key = None
    if given.api_key_env:
        value = environment.get(given.api_key_env, "")
        if not value:
            raise InvalidInput(
                f"{where}: {given.api_key_env} is neither in the environment nor in {ENV_FILE}; set it to the server's "
                "key, or leave out api_key_env",
                field="MODEL_SERVERS",
            )
        key = SecretStr(value)
    is_ollama = given.kind == "ollama"
    max_loaded = settings.ollama_max_loaded_models if is_ollama else 0
    url = _checked_url(_ollama_url(given.url) if is_ollama else given.url, where)
    return ServerSpec(
        name,
        given.kind,
        url,
        key,
        slots=given.slots,
        max_loaded=max_loaded if given.max_loaded is None else given.max_loaded,
        keep_alive=(given.keep_alive or settings.ollama_keep_alive) if is_ollama else None,
        is_local=_is_loopback(url) if given.local is None else given.local,
    )


def _ollama_url(host: str) -> str:
    """The URL for an OLLAMA_HOST as Ollama's own programs take it: a URL, or a host with or without a port. An address
    to listen on (0.0.0.0) is replaced, since it cannot be called."""
    host = host.strip()
    if "://" not in host:
        host = f"http://{host}"
        if urlsplit(host).port is None:
            host = f"{host.rstrip('/')}:{OLLAMA_PORT}"
    return host.replace("//0.0.0.0", "//127.0.0.1", 1)


def _is_loopback(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    address = written_address(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")


def _checked_url(url: str, setting: str) -> str:
    """The URL without a slash at its end. An error does not show the URL: it may hold a password."""
    field = setting.partition(".")[0]
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        raise InvalidInput(f"{setting}: it is no URL; write http://host:port", field=field) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{setting}: it is no URL; write http://host:port", field=field)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidInput(
            f"{setting}: a URL without a password, query and fragment is needed; a key belongs in api_key_env",
            field=field,
        )
    return url.strip().rstrip("/")


def _validated(kind: type[Given], entry: Mapping[str, Any], field: str, where: str) -> Given:
    try:
        return kind.model_validate(dict(entry))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        raise InvalidInput(f"{path}: {sentence_of(first)}", field=field) from None
