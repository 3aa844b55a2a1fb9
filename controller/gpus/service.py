"""The loop of GPU machines with what it needs, made of the settings."""

import os
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal

import structlog
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backplane.domain.budgets import MICRO
from backplane.domain.gpus import MachineSpec, SpendingCaps
from backplane.domain.validation_messages import sentence_of
from backplane.errors import InvalidInput, Unavailable
from backplane.leases.redis import RedisLease
from backplane.machine_identity import check_secret, machine_certificate, machine_token
from backplane.resources import Resources
from backplane.settings import Settings
from controller.gpus.decision import ScalingRules
from controller.gpus.fleet import Demand, FleetParts, FleetRules, GpuFleet, MachineAccess
from controller.gpus.health import fault_of
from controller.gpus.loop import GpuLoop
from controller.gpus.metrics import GpuMetrics
from controller.gpus.provider import GpuProvider
from controller.gpus.router import ModelRouter
from controller.gpus.static import StaticMachine, StaticMachines
from controller.gpus.vastai import VastAi

log = structlog.get_logger()


class _GivenMachine(BaseModel):
    """An entry of GPU_STATIC_MACHINES."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    url: str = Field(pattern=r"^https?://[^/\s@]+(/[^\s?#]*)?$")
    kind: str = Field("ollama", pattern="^(ollama|openai)$")
    slots: int = Field(4, ge=1, le=10_000)
    gpu_type: str = "RTX_4090"
    gpu_count: int = Field(1, ge=1, le=64)
    usd_per_hour: Decimal = Field(Decimal(0), ge=0, le=1000)


@asynccontextmanager
async def open_gpu_loop(
    settings: Settings, resources: Resources, registry: CollectorRegistry, platform_id: str
) -> AsyncIterator[GpuLoop]:
    """Raises InvalidInput when the settings cannot be used; no provider is asked."""
    metrics = GpuMetrics(registry)
    async with AsyncExitStack() as stack:
        provider = provider_of(settings)
        stack.push_async_callback(provider.close)
        router = None
        if settings.gpu_router_url:
            router = ModelRouter(settings.gpu_router_url, settings.gpu_router_token.get_secret_value())
            stack.push_async_callback(router.close)
        parts = FleetParts(
            machines=resources.store.gpu_machines,
            servers=resources.store.model_servers,
            provider=provider,
            access=_AccessOf(settings),
            fault=fault_of,
            calls=_MachineCalls(settings, resources),
            clock=lambda: datetime.now(UTC),
            metrics=metrics,
            router=router,
        )
        owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        redis = resources.redis
        lease = RedisLease(redis, redis.keys.gpu_machines, owner, seconds=settings.lease_seconds)
        fleet = GpuFleet(parts, _rules(settings, platform_id))
        yield GpuLoop(fleet, lease, metrics, settings.gpu_period_seconds)


def provider_of(settings: Settings) -> GpuProvider:
    """Raises InvalidInput."""
    if settings.gpu_provider == "static":
        return StaticMachines(_static_machines(settings))
    key = settings.vastai_api_key.get_secret_value()
    if not key or not key.isascii() or not key.isprintable():
        raise InvalidInput("GPU_PROVIDER is vastai; set VASTAI_API_KEY", field="VASTAI_API_KEY")
    check_secret(settings.gpu_token_secret.get_secret_value())
    return VastAi(settings.vastai_url, key)


def micro_usd(usd: float | Decimal) -> int:
    """By the decimal text: 0.1 is meant as a tenth."""
    return int((Decimal(str(usd)) * MICRO).to_integral_value(ROUND_CEILING))


def _static_machines(settings: Settings) -> list[StaticMachine]:
    machines: dict[str, StaticMachine] = {}
    for place, entry in enumerate(settings.gpu_static_machines):
        where = f"GPU_STATIC_MACHINES.{place}"
        try:
            given = _GivenMachine.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            path = ".".join([where, *(str(part) for part in first["loc"])])
            raise InvalidInput(f"{path}: {sentence_of(first)}", field="GPU_STATIC_MACHINES") from None
        if given.name in machines:
            raise InvalidInput(f"{where}: there is a machine {given.name} already", field="GPU_STATIC_MACHINES")
        machines[given.name] = StaticMachine(
            given.name,
            given.url.rstrip("/"),
            given.kind,
            given.slots,
            given.gpu_type,
            given.gpu_count,
            micro_usd(given.usd_per_hour),
        )
    return list(machines.values())


class _AccessOf:
    """How a machine's model server is called."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.gpu_token_secret.get_secret_value()
        self._is_static = settings.gpu_provider == "static"
        self._static = MachineAccess(settings.gpu_static_key.get_secret_value())

    def __call__(self, machine_id: str) -> MachineAccess:
        if self._is_static:
            return self._static
        return MachineAccess(machine_token(self._secret, machine_id), *machine_certificate(self._secret, machine_id))


class _MachineCalls:
    """What waits, and what each machine serves."""

    def __init__(self, settings: Settings, resources: Resources) -> None:
        self._pool = settings.gpu_model_server
        self._queue = settings.gpu_scale_queue
        self._resources = resources

    async def now(self, names: Sequence[str]) -> Demand:
        try:
            loads = await self._resources.slots.load([self._pool, *names])
            calls = {name: loads[name].running + loads[name].waiting for name in names}
            waiting = loads[self._pool].waiting
            if self._queue:
                depths = await self._resources.queue.depths()
                of_queue = [one for one in depths if one.queue == self._queue]
                waiting = sum(depth.waiting for one in of_queue for depth in one.by_priority.values())
        except Unavailable as error:
            log.warning("nobody knows how many calls wait for GPU machines", error=error.message)
            return Demand(None, {})
        return Demand(waiting, calls)

    async def forget(self, name: str) -> None:
        with suppress(Unavailable):
            await self._resources.slots.forget(name)


def _rules(settings: Settings, platform_id: str) -> FleetRules:
    return FleetRules(
        platform_id=platform_id,
        spec=MachineSpec(
            settings.gpu_type,
            settings.gpu_count,
            settings.gpu_image,
            settings.gpu_disk_gb,
            tuple(settings.gpu_models),
        ),
        pool=settings.gpu_model_server,
        slots=settings.gpu_machine_slots,
        most_micro_usd=micro_usd(settings.gpu_machine_usd_per_hour_max),
        scaling=ScalingRules(
            settings.gpu_min_machines,
            settings.gpu_max_machines,
            settings.gpu_scale_out_above,
            settings.gpu_scale_in_below,
            timedelta(seconds=settings.gpu_scale_in_seconds),
        ),
        caps=SpendingCaps(micro_usd(settings.gpu_usd_per_hour_max), micro_usd(settings.gpu_usd_per_day_max)),
        period=timedelta(seconds=settings.gpu_period_seconds),
        drain=timedelta(seconds=settings.gpu_drain_seconds),
    )
