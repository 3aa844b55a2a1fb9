"""Containers of services, on the one host whose controller has SERVICES_CONTAINER_ENGINE: made as declared, again and
again, and removed when they are not declared any more.

Containers are found by two labels, the platform's id and the service's, so one that was started by a controller that
was killed before it could write so is found and kept. What has no such labels is never touched, whatever its name is:
then the engine refuses the name, and the service says so.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from backplane.containers.engine import ContainerEngine, PresentContainer
from backplane.domain.services import REASON_CHARS, ContainerState, Service
from backplane.errors import Unavailable
from backplane.process.tasks import end
from backplane.settings import fixed
from backplane.store import Services
from controller.batches import repeat_batches
from controller.leader import Leader
from controller.services.container_plan import (
    PLATFORM_LABEL,
    SERVICE_LABEL,
    ContainerAction,
    ServicesHost,
    action_for,
    digest_of,
    run_words,
)

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds between tries to start a container that does not start: twice as long each time."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tries:
    """Of a service, as it was declared in this revision: when it may be tried again, and the pause before that."""

    revision: int
    not_before: float
    pause: float


class ServiceContainers:
    """`env_folder`: where `NAME.env` is looked for; None: nowhere."""

    def __init__(
        self, services: Services, engine: ContainerEngine, rules: ServicesHost, env_folder: Path | None, leader: Leader
    ) -> None:
        self._services = services
        self._engine = engine
        self._rules = rules
        self._env_folder = env_folder
        self._leader = leader
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._tries: dict[str, Tries] = {}

    async def run(self) -> None:
        try:
            await repeat_batches(
                self.work, what="containers of services", pause_seconds=fixed.SERVICE_CONTAINER_SECONDS
            )
        finally:
            await end(*self._at_work.values())
            await self._leader.give_up()

    async def work(self) -> bool:
        """One look at all of them. What takes long (a pull, an end) goes on beside the next look. Raises
        Unavailable."""
        if not await self._leader.leads():
            return False
        # In this order: a service that is made in between has no container yet, and would seem to have lost its own.
        busy = set(self._at_work)
        present = await self._engine.labelled(f"{PLATFORM_LABEL}={self._rules.platform_id}")
        declared = {service.id: service for service in await self._services.list_all()}
        of_service: dict[str, list[PresentContainer]] = {id: [] for id in declared}
        for container in present:
            of_service.setdefault(container.labels.get(SERVICE_LABEL, ""), []).append(container)
        for service_id, containers in of_service.items():
            # Who was at work while this looked may have changed what it saw.
            if service_id not in busy:
                task = asyncio.create_task(
                    self._look_after(service_id, declared.get(service_id), containers), name=f"container {service_id}"
                )
                self._at_work[service_id] = task
                task.add_done_callback(lambda _, id=service_id: self._at_work.pop(id))  # type: ignore[misc]
        return False

    async def _look_after(
        self, service_id: str, service: Service | None, containers: Sequence[PresentContainer]
    ) -> None:
        try:
            await self._make_as_declared(service_id, service, containers)
        except Unavailable as error:
            log.warning("a container of a service is not as declared", service=service_id, error=error.message)
            await self._failed(service, error.message)
        except Exception as fault:
            log.error("a container failed by a fault of the platform", service=service_id, exc_info=fault)

    async def _make_as_declared(
        self, service_id: str, service: Service | None, containers: Sequence[PresentContainer]
    ) -> None:
        for surplus in containers[1:]:
            await self._engine.remove(surplus.id)
        present = containers[0] if containers else None
        wants_one = service is not None and service.spec.container is not None
        declared = digest_of(service, self._rules) if service is not None and wants_one else ""
        action = action_for(service, present, declared)
        if action is ContainerAction.REMOVE and present is not None:
            await self._engine.remove(present.id)
            log.info("a container of a service was removed", service=service_id, container=present.name)
        if service is None:
            return
        if service.deleted_at is not None:
            await self._services.container_gone(service_id)
        elif not wants_one:
            await self._write(service, ContainerState.NONE)
        elif action is ContainerAction.NOTHING and present is not None:
            await self._write_present(service, present)
        elif self._may_try(service):
            await self._bring_up(service, action, present)

    async def _bring_up(self, service: Service, action: ContainerAction, present: PresentContainer | None) -> None:
        """Raises Unavailable."""
        if present is not None and action is ContainerAction.REPLACE:
            await self._engine.remove(present.id)
        if present is not None and action is ContainerAction.START:
            words = await self._engine.last_lines(present.id)
            await self._write(service, ContainerState.FAILED, _ended(present, words))
            await self._engine.start(present.id)
        else:
            file = self._env_file(service)
            await self._engine.run(run_words(service, self._rules, file, await _text_of(file)))
            await self._write(service, ContainerState.RUNNING)
        log.info("a container of a service was started", service=service.name, action=action.value)

    async def _write_present(self, service: Service, present: PresentContainer) -> None:
        if present.state == "running":
            if (tries := self._tries.get(service.id)) and asyncio.get_running_loop().time() >= tries.not_before:
                del self._tries[service.id]
            await self._write(service, ContainerState.RUNNING)
        else:
            words = await self._engine.last_lines(present.id)
            await self._write(service, ContainerState.FAILED, _ended(present, words))

    async def _write(self, service: Service, state: ContainerState, reason: str = "") -> None:
        if (service.container, service.container_reason) != (state, reason[:REASON_CHARS]):
            await self._services.write_container(service, state, reason[:REASON_CHARS])

    async def _failed(self, service: Service | None, reason: str) -> None:
        try:
            if service is not None and service.deleted_at is not None:
                await self._services.container_not_gone(service.id, reason[:REASON_CHARS])
            elif service is not None:
                await self._write(service, ContainerState.FAILED, reason)
        except Unavailable as error:
            log.warning("the state of a container was not written", error=error.message)

    def _may_try(self, service: Service) -> bool:
        """Whether the pause since the last try is over. What is declared anew is tried at once."""
        now, tries = asyncio.get_running_loop().time(), self._tries.get(service.id)
        if tries is None or tries.revision != service.revision:
            tries = Tries(service.revision, 0.0, 0.0)
        if now < tries.not_before:
            return False
        pause = min(2 * tries.pause or FIRST_PAUSE, LONGEST_PAUSE)
        self._tries[service.id] = Tries(service.revision, now + pause, pause)
        return True

    def _env_file(self, service: Service) -> str:
        if self._env_folder is None:
            return ""
        file = self._env_folder / f"{service.name}.env"
        return str(file) if file.is_file() else ""


async def _text_of(file: str) -> str:
    """Raises Unavailable."""
    try:
        return await asyncio.to_thread(Path(file).read_text, "utf-8") if file else ""
    except (OSError, ValueError) as error:
        raise Unavailable(f"{file} cannot be read: {error}", part="containers") from None


def _ended(present: PresentContainer, words: str) -> str:
    ended = f"it is {present.state}, exit code {present.exit_code}"
    return "; ".join(filter(None, (ended, present.error, words)))
