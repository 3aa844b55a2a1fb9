"""What the manifest of an agent may hold, field by field, with the bounds of each.

The names are those of people who write manifests. What becomes a label, a name, or a variable in a cluster is taken
only as a cluster takes it, so that no revision fails there for a reason that was known here.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from backplane.domain.quantities import cpu_millis, memory_bytes
from backplane.domain.sizes import GIB, MIB

REPLICAS_MAX = 100
CPU_MIN_MILLIS, CPU_MAX_MILLIS = 10, 64_000
MEMORY_MIN_BYTES, MEMORY_MAX_BYTES = 16 * MIB, 1024 * GIB
PLATFORM_VARIABLES = frozenset({"PORT"})
"""Environment variables that the platform sets itself."""
_VERSION = re.compile(r"ossa(\.io)?/v0\.[0-9A-Za-z][0-9A-Za-z.-]{0,30}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")


def _api_version(written: str) -> str:
    if not _VERSION.fullmatch(written):
        raise ValueError("this version is not known; known are ossa/v0.* and ossa.io/v0.*, such as ossa/v0.4.6")
    return written


def _label(written: str) -> str:
    if not _LABEL.fullmatch(written):
        raise ValueError(
            "it becomes a label in the cluster; give 1 to 63 letters, digits, `-`, `_` and `.`, a letter or digit at "
            "both ends"
        )
    return written


def _name(written: str) -> str:
    if not _NAME.fullmatch(written):
        raise ValueError("give 1 to 63 small letters, digits and hyphens, none of them at an end")
    return written


def _secret(written: str) -> str:
    if len(written) > 253 or not _SECRET.fullmatch(written):
        raise ValueError(
            "this is no name of a Secret; give at most 253 small letters, digits, `-` and `.`, a letter or digit at "
            "both ends"
        )
    return written


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("this is no name of a variable; give letters, digits and `_`, no digit first, at most 128")
    if name in PLATFORM_VARIABLES:
        raise ValueError("the platform sets it; leave it out")
    return name


def _plain(written: str) -> str:
    if "\0" in written or (not written.isascii() and any("\ud800" <= char <= "\udfff" for char in written)):
        raise ValueError("it contains a NUL character or a lone surrogate; remove it")
    return written


def _path(written: str) -> str:
    if not _PATH.fullmatch(written):
        raise ValueError("give a path that begins with / and has no spaces, such as /health")
    return written


def _network(written: str) -> str:
    try:
        network = ip_network(written, strict=False)
    except ValueError:
        raise ValueError("this is no network; give one as ADDRESS/BITS, such as 203.0.113.0/24") from None
    if str(network) != written.lower():
        raise ValueError(f"this is no network in its usual form; give {network}")
    return str(network)


def _without_repeats(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(items)) < len(items):
        raise ValueError("it names one twice; give each once")
    return items


def _as_text(written: Any) -> Any:
    """YAML reads `cpu: 1` as a number."""
    return str(written) if isinstance(written, int | float) and not isinstance(written, bool) else written


def _cpu(written: str) -> str:
    if not CPU_MIN_MILLIS <= cpu_millis(written) <= CPU_MAX_MILLIS:
        raise ValueError(f"give between {CPU_MIN_MILLIS}m and {CPU_MAX_MILLIS // 1000} processors")
    return written


def _memory(written: str) -> str:
    if not MEMORY_MIN_BYTES <= memory_bytes(written) <= MEMORY_MAX_BYTES:
        raise ValueError(f"give between {MEMORY_MIN_BYTES // MIB}Mi and {MEMORY_MAX_BYTES // GIB // 1024}Ti")
    return written


def _health_check(written: Any) -> Any:
    return {"path": written} if isinstance(written, str) else written


Label = Annotated[str, AfterValidator(_label)]
Plain = Annotated[str, AfterValidator(_plain)]
Argument = Annotated[Plain, Field(max_length=4096)]
Words = Annotated[tuple[Argument, ...], Field(strict=False, max_length=100)]
Seconds = Annotated[int, Field(ge=1, le=600)]
Tier = Literal["tier_1_read", "tier_2_write_limited", "tier_3_write_elevated", "tier_4_policy"]


class _ManifestPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MetadataForm(_ManifestPart):
    name: Annotated[str, AfterValidator(_name)] = Field(
        description="Small letters, digits and hyphens; at most 63.", examples=["support-agent"]
    )
    version: Label = Field(description="Of the agent. It becomes a label.", examples=["1.2.0"])
    description: Plain = Field("", max_length=2000)


class ScalingForm(_ManifestPart):
    min_replicas: int = Field(ge=0, le=REPLICAS_MAX, description="With how many it begins.", examples=[2])
    max_replicas: int | None = Field(
        None, ge=1, le=REPLICAS_MAX, description="Where it is given, an autoscaler sets the number, up to this."
    )
    target_cpu_percent: int = Field(
        80, ge=1, le=100, description="The autoscaler's aim: how much of what was asked for is used."
    )


class ResourcesForm(_ManifestPart):
    """Of one replica. It gets so much and no more: requests equal limits."""

    cpu: Annotated[str, BeforeValidator(_as_text), AfterValidator(_cpu)] = Field(
        description="Processors, from 10m to 64.", examples=["500m"]
    )
    memory: Annotated[str, BeforeValidator(_as_text), AfterValidator(_memory)] = Field(
        description="From 16Mi to 1Ti.", examples=["512Mi"]
    )


class HealthCheckForm(_ManifestPart):
    path: Annotated[str, AfterValidator(_path)] = Field(
        max_length=1000, description="GET on port 3000; an answer from 200 to 399 is health.", examples=["/health"]
    )
    liveness_delay_seconds: int = Field(30, ge=0, le=3600)
    liveness_period_seconds: Seconds = 10
    readiness_delay_seconds: int = Field(10, ge=0, le=3600)
    readiness_period_seconds: Seconds = 5


class MonitoringForm(_ManifestPart):
    health_check: Annotated[HealthCheckForm, BeforeValidator(_health_check)] = Field(
        description="A path, or an object with a path and times.", examples=["/health"]
    )


class DeploymentForm(_ManifestPart):
    scaling: ScalingForm
    resources: ResourcesForm
    command: Words = Field((), description="In place of the image's own entry point.")
    arguments: Words = Field((), description="In place of the image's own arguments.")
    environment: dict[Annotated[str, AfterValidator(_variable)], Annotated[Plain, Field(max_length=8192)]] = Field(
        {}, max_length=100, description="Variables. No secrets: whoever sees the deployment sees them."
    )
    secrets: Annotated[
        tuple[Annotated[str, AfterValidator(_secret)], ...],
        Field(strict=False, max_length=20),
        AfterValidator(_without_repeats),
    ] = Field((), description="Names of Secrets in its namespace. Their keys become variables.")
    egress: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...],
        Field(strict=False, max_length=50),
        AfterValidator(_without_repeats),
    ] = Field((), description="Of tier_4_policy: the networks that it may reach.", examples=[["203.0.113.0/24"]])
    progress_deadline_seconds: int = Field(
        600, ge=30, le=7200, description="A rollout that does not get on for so long has failed."
    )
    auto_rollback: bool = Field(False, description="Whether a failed rollout goes back to the last good revision.")
    idempotent: bool = Field(
        False,
        description="Whether a call that comes again with the same Idempotency-Key does nothing twice, so runs of the "
        "agent may repeat it.",
    )


class SpecForm(_ManifestPart):
    role: Label = Field(description="What it is. It becomes a label.", examples=["assistant"])
    access_tier: Tier = Field(description="What it may reach.", examples=["tier_1_read"])
    deployment: DeploymentForm
    monitoring: MonitoringForm
    extensions: dict[str, Any] = Field({}, description="Anything; kept and shown as it came.")

    @classmethod
    def tiers(cls) -> tuple[str, ...]:
        return get_args(Tier)


class ManifestForm(_ManifestPart):
    """The manifest of an agent (OSSA). A field that is not here is refused; what the platform does not use belongs
    below `extensions`."""

    apiVersion: Annotated[str, AfterValidator(_api_version)] = Field(
        description="ossa/v0.* or ossa.io/v0.*.", examples=["ossa/v0.4.6"]
    )
    kind: Literal["Agent"] = "Agent"
    metadata: MetadataForm
    spec: SpecForm
    extensions: Mapping[str, Any] = Field({}, description="Anything; kept and shown as it came.")
