"""Services: what is always on beside the platform (databases, gateways, servers of tools), and whether each answers.

They belong to the platform: administrators declare them, and see where they are. Whoever declared a service is its
owner, who gets its events and webhooks. What one check says is not yet a state: a service is down when several checks
in a row failed, and up when several went well (`judged`). A service that changes again and again is reported once as
flapping, and again when it has settled. All changes are kept in the service's history, reported or not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from backplane.domain.bus import SPEC_VERSION, CloudEvent, cloud_event

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""That of a label of a host name, since containers are found by it."""
RESERVED_NAMES = frozenset({"status"})
"""`GET /api/nas/services/status` is no service."""
SERVICES_MAX = 200
"""What one controller checks every few seconds without being busy with it."""
HISTORY_MAX = 1000
"""Changes of a service that are kept."""
REASON_CHARS = 500
VOLUME_PREFIX = "agent-service-"
"""Of the engine's name of a volume; the service's name and the volume's follow."""
PIDS_MAX = 4096
"""Processes of a container."""

CLOCK_SLACK = timedelta(minutes=1)
"""So far apart the clocks of two controllers may be."""
FLAP_CHANGES = 4
FLAP_SECONDS = 600.0
"""A service that changed FLAP_CHANGES times within so long is flapping; it has settled when it did not change for so
long."""


_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class CheckKind(StrEnum):
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"


class ServiceStatus(StrEnum):
    """Of its health. `unknown`: no check has ended yet, or too few for either."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class ContainerState(StrEnum):
    """Of a service that names an image. `waiting`: no controller with a container engine has looked at it yet."""

    NONE = "none"
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Times are in seconds. `failures`, `successes`: so many in a row make the service down, or up."""

    kind: CheckKind = CheckKind.TCP
    path: str = "/"
    expected_status: int = 200
    timeout_seconds: float = 5.0
    interval_seconds: float = 30.0
    failures: int = 3
    successes: int = 2


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What runs on the services' host. `port`: inside the container; None: the service's own. `volumes`: name → folder
    inside. No folder of the host can be named, since whoever declares a service need not be root there."""

    image: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    memory_bytes: int = 1 << 30
    cpus: float = 1.0


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What was declared. `public_endpoint`: the host name under which the tunnel serves it; `public_path`: only paths
    that this regular expression finds; `protocol`: what the tunnel speaks to it."""

    port: int
    host: str = "127.0.0.1"
    description: str = ""
    check: HealthCheck = HealthCheck()
    public_endpoint: str | None = None
    public_path: str | None = None
    protocol: CheckKind = CheckKind.HTTP
    container: ContainerSpec | None = None
    webhook_url: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "ServiceSpec":
        container = values["container"]
        return cls(
            **{
                **values,
                "check": HealthCheck(**{**values["check"], "kind": CheckKind(values["check"]["kind"])}),
                "protocol": CheckKind(values["protocol"]),
                "container": ContainerSpec(**{**container, "command": tuple(container["command"])})
                if container
                else None,
            }
        )


@dataclass(frozen=True, slots=True)
class Health:
    """`streak`: checks in a row that said otherwise than `status`. `changes`: times of the last changes, the newest
    last, at most FLAP_CHANGES. `flapping_since`: since when changes are not reported one by one. `checks`: how many
    results were written, by which two writers notice each other."""

    status: ServiceStatus = ServiceStatus.UNKNOWN
    since: datetime | None = None
    checked_at: datetime | None = None
    reason: str = ""
    latency_ms: float | None = None
    streak: int = 0
    changes: tuple[datetime, ...] = ()
    flapping_since: datetime | None = None
    checks: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """`revision` counts the changes of what was declared. `deleted_at`: it goes as soon as its container is gone."""

    id: str
    owner_id: str
    name: str
    spec: ServiceSpec
    revision: int
    created_at: datetime
    updated_at: datetime
    health: Health = Health()
    container: ContainerState = ContainerState.NONE
    container_reason: str = ""
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`error`: why it failed, in words; empty: it went well."""

    at: datetime
    error: str = ""
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A row of a service's history."""

    number: int
    at: datetime
    status: ServiceStatus
    reason: str


class Report(StrEnum):
    """Types of events."""

    UP = "service.up"
    DOWN = "service.down"
    FLAPPING = "service.flapping"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`changed`: the status is another one, which the history gets. `report`: what the owner is sent; None: nothing."""

    health: Health
    changed: bool
    report: Report | None


def name_fault(name: str) -> str:
    """Why a service may not have this name; empty: it may."""
    if name in RESERVED_NAMES:
        return f"{name} is a path of the API; choose another name"
    if not re.fullmatch(NAME_PATTERN, name):
        return "send 1 to 63 small letters, digits and hyphens, none of them at an end"
    if _ID.fullmatch(name):
        return "it looks like an id; choose another name"
    return ""


def judged(health: Health, check: HealthCheck, result: CheckResult) -> Judgement:
    """What is known of a service after one more check."""
    says = ServiceStatus.DOWN if result.error else ServiceStatus.UP
    seen = replace(
        health,
        checked_at=result.at,
        checks=health.checks + 1,
        latency_ms=result.latency_ms,
        streak=0 if says is health.status else health.streak + 1,
        reason=result.error[:REASON_CHARS] or (health.reason if health.status is ServiceStatus.DOWN else ""),
    )
    if says is health.status:
        return _settled(seen, result.at)
    # The first success of a service that was never seen is enough: nobody waits for a second.
    successes = 1 if health.status is ServiceStatus.UNKNOWN else check.successes
    needed = check.failures if result.error else successes
    if seen.streak < needed:
        return _settled(seen, result.at)
    changes = (*health.changes, result.at)[-FLAP_CHANGES:]
    now = replace(seen, status=says, since=result.at, streak=0, changes=changes, reason=result.error[:REASON_CHARS])
    if now.flapping_since is not None:
        return Judgement(now, changed=True, report=None)
    if len(changes) == FLAP_CHANGES and abs(result.at - changes[0]) <= timedelta(seconds=FLAP_SECONDS):
        return Judgement(replace(now, flapping_since=result.at), changed=True, report=Report.FLAPPING)
    return Judgement(now, changed=True, report=Report.UP if says is ServiceStatus.UP else Report.DOWN)


def _settled(health: Health, at: datetime) -> Judgement:
    """Without a change. One that was flapping, and did not change for long enough, is reported as what it is now."""
    last = health.changes[-1] if health.changes else at
    if health.flapping_since is None or abs(at - last) < timedelta(seconds=FLAP_SECONDS):
        return Judgement(health, changed=False, report=None)
    report = Report.UP if health.status is ServiceStatus.UP else Report.DOWN
    return Judgement(replace(health, flapping_since=None, changes=()), changed=False, report=report)


def is_due(service: Service, now: datetime) -> bool:
    """A check that was done in the future was done by a clock that was ahead, and counts for nothing."""
    checked_at = service.health.checked_at
    return due_at(service) <= now or (checked_at is not None and checked_at > now + CLOCK_SLACK)


def is_outdated(service: Service, now: datetime) -> bool:
    """Whether checks that were due were not done, so that the status may be another one now."""
    checked_at, check = service.health.checked_at, service.spec.check
    late = timedelta(seconds=2 * check.interval_seconds + check.timeout_seconds) + CLOCK_SLACK
    return checked_at is not None and now - checked_at > late


def due_at(service: Service) -> datetime:
    """When the service is to be checked next."""
    if service.health.checked_at is None:
        return datetime.min.replace(tzinfo=UTC)
    return service.health.checked_at + timedelta(seconds=service.spec.check.interval_seconds)


def report_data(service: Service, health: Health) -> dict[str, Any]:
    """What an event and a webhook say of a service. Where it is they do not say."""
    return {
        "service_id": service.id,
        "name": service.name,
        "status": health.status.value,
        "since": health.since.isoformat() if health.since else None,
        "reason": health.reason,
        "flapping": health.flapping_since is not None,
    }


def report_event(service: Service, health: Health, report: Report) -> CloudEvent:
    """The number of the check makes the id: the same change is never two events."""
    attributes = {
        "specversion": SPEC_VERSION,
        "id": f"{service.id}-{health.checks}",
        "source": f"/api/nas/services/{service.name}",
        "type": report.value,
        "subject": service.name,
        "time": (health.checked_at or datetime.now(UTC)).astimezone(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": report_data(service, health),
    }
    return cloud_event(attributes, of_platform=True)


def explanation(service: Service, now: datetime) -> str:
    """In words, why a service is not as wanted, or that it is."""
    health, check, name = service.health, service.spec.check, service.name
    where = f"{service.spec.host}:{service.spec.port}"
    if service.deleted_at is not None:
        return f"{name} is being deleted: it goes when its container is gone. {service.container_reason}".strip()
    parts: list[str] = []
    if service.container is ContainerState.WAITING:
        parts.append(
            "Its container is not started yet: a controller with SERVICES_CONTAINER_ENGINE does that, on the services' "
            "host."
        )
    if service.container is ContainerState.FAILED:
        parts.append(f"Its container does not run: {service.container_reason}")
    if health.checked_at is None:
        parts.append("It was not checked yet: a controller does that within seconds.")
    elif health.status is ServiceStatus.UNKNOWN:
        parts.append(f"{health.streak} of {check.failures} checks have failed in a row: {health.reason}")
    elif health.status is ServiceStatus.DOWN:
        parts.append(f"It does not answer at {where}: {health.reason}")
    elif health.streak:
        parts.append(f"It is up, but the last {health.streak} checks failed: {health.reason}")
    else:
        parts.append(f"It answers at {where}.")
    if health.checked_at is not None and is_outdated(service, now):
        parts.append(
            f"That was at {health.checked_at:%Y-%m-%d %H:%M:%S} UTC, and it was not checked since: no controller runs."
        )
    if health.flapping_since is not None:
        parts.append(
            f"It goes up and down: single changes are not reported since {health.flapping_since:%Y-%m-%d %H:%M:%S} UTC."
        )
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def overall(statuses: Sequence[ServiceStatus]) -> str:
    """`up`, `down`, `degraded` or `unknown`: of all services together."""
    known = {status for status in statuses if status is not ServiceStatus.UNKNOWN}
    if len(known) == 1:
        return known.pop().value
    return "degraded" if known else ServiceStatus.UNKNOWN.value
