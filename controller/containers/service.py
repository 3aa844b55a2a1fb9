"""The loop of what containers use, with the places that the settings name."""

import shlex

import structlog
from prometheus_client import CollectorRegistry

from backplane.containers.engine import ContainerEngine
from backplane.domain.sandbox_labels import PART, SANDBOX
from backplane.errors import Unavailable
from backplane.settings import Settings, fixed
from controller.cleanup.sessions import find_engine
from controller.containers.loop import ContainerUseLoop, EnginePlace, UsePlace
from controller.containers.metrics import ContainerKind, ContainerUseMetrics
from controller.deployments.containers.plan import PLATFORM_LABEL as OF_DEPLOYMENTS
from controller.services.container_plan import PLATFORM_LABEL as OF_SERVICES

log = structlog.get_logger()


async def container_use_loop(
    settings: Settings, platform_id: str, registry: CollectorRegistry
) -> ContainerUseLoop | None:
    """None where the platform starts no containers from here."""
    places = dict[ContainerKind, UsePlace]()
    if settings.services_container_engine:
        places["service"] = _at(shlex.split(settings.services_container_engine), f"{OF_SERVICES}={platform_id}")
    if settings.deploy_target == "container":
        places["deployment"] = _at(shlex.split(settings.deploy_container_engine), f"{OF_DEPLOYMENTS}={platform_id}")
    if (sandboxes := await _of_sandboxes(settings)) is not None:
        places["sandbox"] = sandboxes
    if not places:
        return None
    metrics = ContainerUseMetrics(registry)
    return ContainerUseLoop(places, metrics, period_seconds=fixed.CONTAINERS_USE_SECONDS)


async def _of_sandboxes(settings: Settings) -> UsePlace | None:
    match settings.sandbox:
        case "kubernetes":
            # The HTTP library behind it takes 0.2 s and 25 MB.
            from controller.containers.kubernetes import JobsPlace  # noqa: PLC0415

            return JobsPlace(settings.sandbox_namespace)
        case "container":
            try:
                return _at(await find_engine(settings.sandbox_container_engine), f"{PART}={SANDBOX}")
            except Unavailable as error:
                log.warning("cannot read what sandboxes use", error=error.message)
    return None


def _at(words: list[str], label: str) -> EnginePlace:
    return EnginePlace(ContainerEngine(words), label)
