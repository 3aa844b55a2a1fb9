"""What the API takes and gives of services. Requests are strict, and each limit has its field's path."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, BaseModel, Field, model_validator

from app.schemas.fields import NextNumber, StrictRequest, Text
from backplane.domain.services import (
    NAME_PATTERN,
    CheckKind,
    ContainerSpec,
    ContainerState,
    HealthCheck,
    Service,
    ServiceSpec,
    ServiceStatus,
    StatusChange,
    explanation,
    is_outdated,
    name_fault,
    overall,
)
from backplane.domain.sizes import GIB, MIB
from backplane.errors import InvalidInput
from backplane.net.addresses import is_host
from backplane.net.go_patterns import go_pattern_fault
from backplane.net.hosts import normal_host

_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/@-]{0,254}", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_VOLUME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]{1,199}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

_OUTDATED = "It was not checked when it was due, since no controller runs: its status may be another one now."

ServiceKey = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,63}$", examples=["redis"], description="Its name, or its id.")]


def _host(written: str) -> str:
    """Raises ValueError for what is no host, or an address in an unusual form."""
    try:
        return normal_host(written)
    except InvalidInput as error:
        raise ValueError(error.message) from None


def _public_name(written: str) -> str:
    name = written.lower()
    if "*" in name:
        raise ValueError("a wildcard also matches names that nobody meant; give each name a service of its own")
    labels = name.split(".")
    if not is_host(name) or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("send a host name without a port, a path or a scheme, such as hooks.example.org")
    if labels[-1].isdecimal():
        raise ValueError("an address cannot be served by the tunnel; send a host name")
    return name


def _check_path(path: str) -> str:
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or set(path) & set(" #\\"):
        raise ValueError("send a path that begins with / and has no spaces, such as /health")
    return path


def _image(image: str) -> str:
    if not _IMAGE.fullmatch(image):
        raise ValueError("send the name of an image, such as docker.io/library/redis:8.2.2")
    return image


def _one_line(value: str) -> str:
    if any(not char.isprintable() for char in value):
        raise ValueError("it contains a line break or a control character; remove it")
    return value


def _public_path(path: str) -> str:
    if fault := go_pattern_fault(path):
        raise ValueError(fault)
    return path


def _variables(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name of a variable: send letters, digits and _")
    return environment


def _volumes(volumes: dict[str, str]) -> dict[str, str]:
    for name, folder in volumes.items():
        if not _VOLUME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name of a volume: send small letters, digits, _, . and -")
        if not _FOLDER.fullmatch(folder) or ".." in folder.split("/"):
            raise ValueError(f"{name}: send a folder inside the container, such as /data")
    return volumes


Line = Annotated[Text, AfterValidator(_one_line)]
Kind = Annotated[CheckKind, Field(strict=False)]


class CheckRequest(StrictRequest):
    kind: Kind = Field(CheckKind.TCP, description="tcp: somebody takes a connection. http, https: GET of the path.")
    path: Annotated[Text, AfterValidator(_check_path)] = Field("/", max_length=1000, examples=["/health"])
    expected_status: int = Field(200, ge=100, le=599, description="Of the answer. Redirects are not followed.")
    timeout_seconds: float = Field(5.0, ge=0.1, le=30, strict=False, description="Of the whole check.")
    interval_seconds: float = Field(30.0, ge=1, le=3600, strict=False, description="From check to check.")
    failures: int = Field(3, ge=1, le=100, description="So many in a row make it down.")
    successes: int = Field(2, ge=1, le=100, description="So many in a row make it up again.")


class ContainerRequest(StrictRequest):
    """A container on the services' host. Secrets do not belong here: every administrator sees all of it."""

    image: Annotated[str, AfterValidator(_image)] = Field(examples=["docker.io/library/redis:8.2.2-bookworm"])
    command: list[Line] = Field([], max_length=100, description="In place of the image's own.")
    environment: Annotated[dict[str, Line], AfterValidator(_variables)] = Field({}, max_length=100)
    volumes: Annotated[dict[str, str], AfterValidator(_volumes)] = Field(
        {}, max_length=20, description="Volumes by name, each with its folder inside.", examples=[{"data": "/data"}]
    )
    port: int | None = Field(None, ge=1, le=65535, description="Inside the container; else the service's own.")
    memory_bytes: int = Field(1 * GIB, ge=16 * MIB, le=1024 * GIB)
    cpus: float = Field(1.0, ge=0.01, le=256, strict=False)


class ServiceFields(StrictRequest):
    port: int = Field(ge=1, le=65535, examples=[6379])
    host: Annotated[str, AfterValidator(_host)] = Field(
        "127.0.0.1", max_length=253, description="Where controllers and the tunnel reach it."
    )
    description: Line = Field("", max_length=500)
    check: CheckRequest = CheckRequest()
    public_endpoint: Annotated[str, AfterValidator(_public_name)] | None = Field(
        None,
        max_length=253,
        description="The host name under which the tunnel serves it.",
        examples=["hooks.example.org"],
    )
    public_path: Annotated[Line, AfterValidator(_public_path)] | None = Field(
        None, min_length=1, max_length=500, description="Only paths that this regular expression (Go's) finds."
    )
    protocol: Kind = Field(CheckKind.HTTP, description="What the tunnel speaks to it.")
    container: ContainerRequest | None = Field(None, description="Else it is only observed.")
    webhook_url: Text | None = Field(
        None, description="Is sent a signed message when the service goes down or up. For the signature, see webhooks."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "ServiceFields":
        if self.public_path is not None and self.public_endpoint is None:
            raise ValueError("public_path: it needs a public_endpoint")
        if self.check.timeout_seconds > self.check.interval_seconds:
            raise ValueError("check.timeout_seconds: it must not be longer than check.interval_seconds")
        return self

    def spec(self) -> ServiceSpec:
        given = self.container
        container = None
        if given is not None:
            container = ContainerSpec(**{**given.model_dump(), "command": tuple(given.command)})
        plain = self.model_dump(exclude={"check", "container", "name"})
        return ServiceSpec(**plain, check=HealthCheck(**self.check.model_dump()), container=container)


def _new_name(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


class NewService(ServiceFields):
    name: Annotated[str, AfterValidator(_new_name)] = Field(
        description="Small letters, digits and hyphens.",
        json_schema_extra={"pattern": NAME_PATTERN},
        examples=["redis"],
    )


class CheckView(BaseModel):
    kind: CheckKind
    path: str
    expected_status: int
    timeout_seconds: float
    interval_seconds: float
    failures: int
    successes: int


class ContainerView(BaseModel):
    """`state` failed: `reason` says why."""

    state: ContainerState
    reason: str
    image: str | None = Field(description="Null: the image was taken away, and the container is being stopped.")
    command: list[str]
    environment: dict[str, str]
    volumes: dict[str, str]
    port: int | None
    memory_bytes: int | None
    cpus: float | None


class ServiceView(BaseModel):
    id: str = Field(examples=[_ID])
    name: str = Field(examples=["redis"])
    host: str
    port: int
    description: str
    status: ServiceStatus
    since: datetime | None = Field(description="Since when it has this status.")
    flapping: bool = Field(description="It goes up and down, and single changes are not reported.")
    outdated: bool = Field(description=_OUTDATED)
    explanation: str = Field(description="In words, why it is not as wanted, or that it is.")
    reason: str = Field(description="What the last failed check said; empty where none failed.")
    latency_ms: float | None
    checked_at: datetime | None
    check: CheckView
    public_endpoint: str | None
    public_path: str | None
    protocol: CheckKind
    container: ContainerView | None
    webhook_url: str | None
    revision: int = Field(description="Counts the changes of what was declared.")
    created_at: datetime
    updated_at: datetime
    deleting: bool = Field(description="It goes as soon as its container is gone.")

    @classmethod
    def of(cls, service: Service) -> "ServiceView":
        spec, health, now = service.spec, service.health, datetime.now(UTC)
        plain = spec.as_json()
        return cls(
            **{
                **{name: plain[name] for name in ("host", "port", "description", "check", "public_endpoint")},
                **{name: plain[name] for name in ("public_path", "protocol", "webhook_url")},
            },
            id=service.id,
            name=service.name,
            status=health.status,
            since=health.since,
            flapping=health.flapping_since is not None,
            outdated=is_outdated(service, now),
            explanation=explanation(service, now),
            reason=health.reason,
            latency_ms=health.latency_ms,
            checked_at=health.checked_at,
            container=_container(service),
            revision=service.revision,
            created_at=service.created_at,
            updated_at=service.updated_at,
            deleting=service.deleted_at is not None,
        )


class ServiceList(BaseModel):
    services: list[ServiceView]


class StatusEntry(BaseModel):
    """Of one service, for everybody: where it is inside stands only in what administrators see."""

    name: str
    description: str
    status: ServiceStatus
    since: datetime | None
    checked_at: datetime | None
    flapping: bool
    outdated: bool = Field(description=_OUTDATED)
    public_endpoint: str | None


class StatusPage(BaseModel):
    status: str = Field(
        description="up, down, degraded (some are down) or unknown: of all together, as far as they are checked.",
        examples=["up"],
    )
    services: list[StatusEntry]

    @classmethod
    def of(cls, services: list[Service]) -> "StatusPage":
        now = datetime.now(UTC)
        there = [service for service in services if service.deleted_at is None]
        current = [service.health.status for service in there if not is_outdated(service, now)]
        return cls(
            status=overall(current),
            services=[
                StatusEntry(
                    name=service.name,
                    description=service.spec.description,
                    status=service.health.status,
                    since=service.health.since,
                    checked_at=service.health.checked_at,
                    flapping=service.health.flapping_since is not None,
                    outdated=is_outdated(service, now),
                    public_endpoint=service.spec.public_endpoint,
                )
                for service in there
            ],
        )


class ServiceChangeView(BaseModel):
    number: int
    at: datetime
    status: ServiceStatus
    reason: str = Field(description="Why it went down.")

    @classmethod
    def of(cls, change: StatusChange) -> "ServiceChangeView":
        return cls(number=change.number, at=change.at, status=change.status, reason=change.reason)


class ServiceHistory(BaseModel):
    changes: list[ServiceChangeView] = Field(description="The newest first. At most the last 1,000 are kept.")
    next_cursor: NextNumber


def _container(service: Service) -> ContainerView | None:
    spec = service.spec.container
    if spec is None and service.container is ContainerState.NONE:
        return None
    return ContainerView(
        state=service.container,
        reason=service.container_reason,
        image=spec.image if spec else None,
        command=list(spec.command) if spec else [],
        environment=dict(spec.environment) if spec else {},
        volumes=dict(spec.volumes) if spec else {},
        port=spec.port if spec else None,
        memory_bytes=spec.memory_bytes if spec else None,
        cpus=spec.cpus if spec else None,
    )
