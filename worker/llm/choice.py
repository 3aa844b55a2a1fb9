"""Which models a worker may ask: those of the settings and those that runs name, each at its server.

An adapter, and with it its client library, is loaded when a server of its kind is configured: a worker without models
does not pay for them.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from backplane.domain.models import ModelName
from backplane.errors import InvalidInput
from backplane.process.tasks import in_thread
from backplane.settings import Settings
from worker.llm.base import CallLimits, ModelRefused, ModelServer
from worker.llm.catalogue import Kind, Price, Prices, ServerSpec, prices_of, servers_of

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
    `configured`: the models that settings name."""

    servers: Mapping[str, tuple[ServerSpec, ModelServer]]
    prices: Prices
    default: ModelName | None
    fallbacks: Sequence[ModelName]
    configured: frozenset[ModelName]

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
        if name.server not in self.servers:
            known = ", ".join(sorted(self.servers)) or "none"
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
async def open_models(settings: Settings, limits: CallLimits) -> AsyncIterator[ModelChoice]:
    """Raises InvalidInput when the settings cannot be used; no server is asked."""
    specs, prices = servers_of(settings), prices_of(settings)
    default = _known(settings.model, "MODEL", specs) if settings.model else None
    fallbacks = [_known(name, "MODEL_FALLBACKS", specs) for name in settings.model_fallbacks]
    configured = {name for name in (default, *fallbacks) if name is not None}
    if settings.embedding_model:
        configured.add(_known(settings.embedding_model, "EMBEDDING_MODEL", specs))
    configured.update(ModelName.parse(name, "MODEL_PRICES") for name in settings.model_prices)
    async with AsyncExitStack() as stack:
        servers: dict[str, tuple[ServerSpec, ModelServer]] = {}
        for spec in specs.values():
            server = await _open_server(spec, limits)
            stack.push_async_callback(server.close)
            servers[spec.name] = (spec, server)
        yield ModelChoice(servers, prices, default, fallbacks, frozenset(configured))


def _known(text: str, setting: str, specs: Mapping[str, ServerSpec]) -> ModelName:
    name = ModelName.parse(text, setting)
    if name.server not in specs:
        known = ", ".join(sorted(specs)) or "none"
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
