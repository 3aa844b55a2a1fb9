"""Which models a worker may ask: those of the settings and those that runs name, each at its server.

An adapter, and with it its client library, is loaded when a server of its kind is configured: a worker without models
does not pay for them.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from backplane.domain.gpus import RegisteredServer
from backplane.domain.models import ModelName
from backplane.errors import InvalidInput
from backplane.limits.slots.base import Slots
from backplane.machine_identity import check_secret, machine_certificate, machine_token
from backplane.process.tasks import in_thread
from backplane.settings import Settings
from backplane.store import ModelServerTable
from worker.llm.base import CallLimits, ModelRefused, ModelServer
from worker.llm.catalogue import Kind, Price, Prices, ServerSpec, prices_of, servers_of
from worker.llm.served import ServerPool

OTHER = "other"
"""In metrics: a model that a run has named and no setting."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be asked. `price` is None when it is not known."""

    name: ModelName
    spec: ServerSpec
    server: ModelServer
    price: Price | None


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """`servers`: each by its name, with its adapter, open. `default` is MODEL; `fallbacks` are tried after it.
    `configured`: the models that settings name. `pool`: the server that is GPU machines, where there are such."""

    servers: Mapping[str, tuple[ServerSpec, ModelServer]]
    prices: Prices
    default: ModelName | None
    fallbacks: Sequence[ModelName]
    configured: frozenset[ModelName]
    pool: ServerPool | None = None

    @property
    def is_set(self) -> bool:
        """Whether a run that names no model has one."""
        return self.default is not None

    def candidates(self, model: str | None) -> list[Candidate]:
        """The models to try, in this order: MODEL, then MODEL_FALLBACKS; only the one named, where one is: whoever
        chose it may not want to be answered elsewhere. Raises ModelRefused when there is none, or its server is not
        known."""
        if model is None and self.default is None:
            raise ModelRefused("no model is set: name one for the run as SERVER/NAME, or set MODEL")
        try:
            first = self.default if model is None else ModelName.parse(model)
        except InvalidInput as error:
            raise ModelRefused(error.message) from error
        others = self.fallbacks if model is None else ()
        names = dict.fromkeys(name for name in (first, *others) if name is not None)
        return [self.candidate(name) for name in names]

    def candidate(self, name: ModelName) -> Candidate:
        """Raises ModelRefused."""
        if self.pool is not None and name.server == self.pool.name:
            return Candidate(name, self.pool.spec, self.pool, self.prices.of(name))
        if name.server not in self.servers:
            known = ", ".join(sorted([*self.servers, *([self.pool.name] if self.pool else [])])) or "none"
            raise ModelRefused(
                f"there is no model server {name.server[:64]!r} (there are: {known}); name the model as SERVER/NAME, "
                "or add the server to MODEL_SERVERS"
            )
        spec, server = self.servers[name.server]
        return Candidate(name, spec, server, self.prices.of(name))

    def label(self, name: ModelName) -> str:
        """The model in metrics, of which there must not be one for each name that somebody thinks of."""
        return name.model if name in self.configured else OTHER


@asynccontextmanager
async def open_models(
    settings: Settings, limits: CallLimits, slots: Slots, table: ModelServerTable | None
) -> AsyncIterator[ModelChoice]:
    """Raises InvalidInput when the settings cannot be used; no server is asked. `table`: of servers that come and go;
    it is read when `pool` runs."""
    specs, prices = servers_of(settings), prices_of(settings)
    pools = {settings.gpu_model_server} if settings.gpu_provider else set()
    known = {*specs, *pools}
    default = _known(settings.model, "MODEL", known) if settings.model else None
    fallbacks = [_known(name, "MODEL_FALLBACKS", known) for name in settings.model_fallbacks]
    configured = {name for name in (default, *fallbacks) if name is not None}
    if settings.embedding_model:
        configured.add(_known(settings.embedding_model, "EMBEDDING_MODEL", known))
    configured.update(ModelName.parse(name, "MODEL_PRICES") for name in settings.model_prices)
    async with AsyncExitStack() as stack:
        servers: dict[str, tuple[ServerSpec, ModelServer]] = {}
        for spec in specs.values():
            server = await _open_server(spec, limits)
            stack.push_async_callback(server.close)
            servers[spec.name] = (spec, server)
        pool = await _open_pool(settings, limits, slots, table) if pools and table is not None else None
        if pool is not None:
            stack.push_async_callback(pool.close)
        yield ModelChoice(servers, prices, default, fallbacks, frozenset(configured), pool)


async def _open_pool(settings: Settings, limits: CallLimits, slots: Slots, table: ModelServerTable) -> ServerPool:
    """Raises InvalidInput."""
    kinds: set[Kind] = {"ollama"}
    if settings.gpu_provider == "vastai":
        check_secret(settings.gpu_token_secret.get_secret_value())
    elif any(entry.get("kind") == "openai" for entry in settings.gpu_static_machines):
        kinds.add("openai")
    # Loaded now: a worker that loads a library while runs go on stops all of them for as long.
    wires = {kind: await in_thread(_wire, kind) for kind in kinds}

    def spec_of(registered: RegisteredServer) -> ServerSpec:
        if registered.provider == "static":
            key, certificate = settings.gpu_static_key.get_secret_value(), ""
        else:
            secret = settings.gpu_token_secret.get_secret_value()
            key = machine_token(secret, registered.machine_id)
            certificate, _ = machine_certificate(secret, registered.machine_id)
        is_ollama = registered.kind == "ollama"
        return ServerSpec(
            registered.name,
            "ollama" if is_ollama else "openai",
            registered.url,
            SecretStr(key) if key else None,
            slots=registered.slots,
            max_loaded=settings.ollama_max_loaded_models if is_ollama else 0,
            keep_alive=settings.ollama_keep_alive if is_ollama else None,
            certificate=certificate,
        )

    return ServerPool(
        settings.gpu_model_server,
        table,
        slots,
        spec_of,
        lambda spec: (wires.get(spec.kind) or _wire(spec.kind))(spec, limits),
    )


def _known(text: str, setting: str, servers: Set[str]) -> ModelName:
    name = ModelName.parse(text, setting)
    if name.server not in servers:
        known = ", ".join(sorted(servers)) or "none"
        raise InvalidInput(
            f"{setting}: there is no model server {name.server!r} (there are: {known}); set OLLAMA_HOST, "
            "OPENAI_API_KEY, ANTHROPIC_API_KEY or MODEL_SERVERS",
            field=setting,
        )
    return name


async def _open_server(spec: ServerSpec, limits: CallLimits) -> ModelServer:
    opened = await in_thread(_wire, spec.kind)
    return opened(spec, limits)


def _wire(kind: Kind) -> Callable[[ServerSpec, CallLimits], ModelServer]:
    """The one place where a wire is chosen, and its library loaded."""
    match kind:
        case "ollama":
            from worker.llm import ollama  # noqa: PLC0415 - 0.01 s of CPU

            return ollama.open_server
        case "openai":
            from worker.llm import openai  # noqa: PLC0415 - 0.5 s of CPU and 21 MB

            return openai.open_server
        case "anthropic":
            from worker.llm import anthropic  # noqa: PLC0415 - 1.4 s of CPU and 49 MB

            return anthropic.open_server
