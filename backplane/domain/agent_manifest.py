"""The manifest of an agent that is deployed, in the form of the Open Standard for Software Agents (OSSA).

What the platform uses has fields of its own here; a field that it does not know is refused with its path, since a field
that is passed over in silence is a promise that nobody keeps. Only `extensions` may hold anything: it is kept and shown
as it came. What a manifest may hold stands in `backplane.domain.manifest_form`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any

from pydantic import ValidationError

from backplane.domain.manifest_form import HealthCheckForm, ManifestForm, SpecForm
from backplane.domain.validation_messages import HINTS, sentence_of
from backplane.errors import FAULTS_SHOWN, Fault, InvalidInput, dotted

MANIFEST_CHARS = 32 * 1024
"""Of the manifest as JSON, without spaces."""


class AccessTier(StrEnum):
    """What an agent may reach. From `tier_3` on an administrator approves each revision that asks for more than the one
    before."""

    READ = "tier_1_read"
    WRITE_LIMITED = "tier_2_write_limited"
    WRITE_ELEVATED = "tier_3_write_elevated"
    POLICY = "tier_4_policy"


@dataclass(frozen=True, slots=True)
class AgentScaling:
    """`max_replicas`: None: the number is set by hand. Otherwise an autoscaler sets it, by the CPU's use in percent of
    what was asked for."""

    min_replicas: int
    max_replicas: int | None = None
    target_cpu_percent: int = 80


@dataclass(frozen=True, slots=True)
class HealthProbe:
    """`path` on the port `http`; times in seconds (row D2 of what the platform promises)."""

    path: str
    liveness_delay: int = 30
    liveness_period: int = 10
    readiness_delay: int = 10
    readiness_period: int = 5


@dataclass(frozen=True, slots=True)
class AgentManifest:
    """`source`: the manifest as it came, with `extensions`, which is what is stored and shown. `cpu`, `memory`:
    quantities in Kubernetes' notation. `secrets`: names of Secrets in the deployment's namespace, whose keys become
    environment variables. `egress`: for `tier_4_policy` only, the networks (CIDR) that it may reach. `idempotent`: it
    does nothing twice when a call comes again with the same key."""

    name: str
    version: str
    role: str
    access_tier: AccessTier
    scaling: AgentScaling
    cpu: str
    memory: str
    health: HealthProbe
    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    progress_deadline_seconds: int = 600
    auto_rollback: bool = False
    idempotent: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_autoscaled(self) -> bool:
        return self.scaling.max_replicas is not None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "AgentManifest":
        """One that was taken before. It is not validated again: what may be deployed may have changed since."""
        lists = {name: tuple(values[name]) for name in ("command", "arguments", "secrets", "egress")}
        return cls(
            **{
                **values,
                **lists,
                "access_tier": AccessTier(values["access_tier"]),
                "scaling": AgentScaling(**values["scaling"]),
                "health": HealthProbe(**values["health"]),
            }
        )


def parse_manifest(value: Any, field: str = "") -> AgentManifest:
    """Validate a manifest that came from outside: a JSON value. `field`: where it stands, which begins the path of each
    fault. Raises InvalidInput with all that is wrong."""
    if isinstance(value, Mapping):
        chars = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
        if chars > MANIFEST_CHARS:
            message = f"the manifest has {chars:,} characters as JSON; at most {MANIFEST_CHARS:,} are possible"
            raise InvalidInput(message, field=field or None)
    # All faults at once: what compares two fields looks at the value, whatever else is wrong with it.
    faults, form = list(_of_fields_together(value, field)), None
    try:
        form = ManifestForm.model_validate(value)
    except ValidationError as error:
        faults = [*islice(_of_form(value, error, field), FAULTS_SHOWN), *faults]
    if faults or form is None:
        raise InvalidInput.of(faults)
    return _manifest(form, value)


def _manifest(form: ManifestForm, value: Mapping[str, Any]) -> AgentManifest:
    spec, deployment = form.spec, form.spec.deployment
    return AgentManifest(
        name=form.metadata.name,
        version=form.metadata.version,
        role=spec.role,
        access_tier=AccessTier(spec.access_tier),
        scaling=AgentScaling(**deployment.scaling.model_dump()),
        cpu=deployment.resources.cpu,
        memory=deployment.resources.memory,
        health=_health(spec.monitoring.health_check),
        command=deployment.command,
        arguments=deployment.arguments,
        environment=deployment.environment,
        secrets=deployment.secrets,
        egress=deployment.egress,
        progress_deadline_seconds=deployment.progress_deadline_seconds,
        auto_rollback=deployment.auto_rollback,
        idempotent=deployment.idempotent,
        source=value,
    )


def _health(form: HealthCheckForm) -> HealthProbe:
    return HealthProbe(
        path=form.path,
        liveness_delay=form.liveness_delay_seconds,
        liveness_period=form.liveness_period_seconds,
        readiness_delay=form.readiness_delay_seconds,
        readiness_period=form.readiness_period_seconds,
    )


def _of_form(value: Any, error: ValidationError, field: str) -> Iterator[Fault]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    for number, fault in enumerate(found):
        where = _dotted(field, _known_place(value, fault["loc"]))
        said = sentence_of(fault, ManifestForm, with_hint=number < HINTS)
        if fault["type"] == "extra_forbidden":
            said += "; what the platform does not use belongs below `extensions`"
        yield Fault(where or None, f"{where}: {said}" if where else f"the manifest: {said}")


def _known_place(value: Any, place: Sequence[str | int]) -> Sequence[str | int]:
    """The place without what stands below a text or a number: pydantic goes on where a field has two forms, and where
    a name is wrong and not its value."""
    for depth, part in enumerate(place):
        if isinstance(value, dict) and isinstance(part, str):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return place[:depth]
    return place


def _of_fields_together(value: Any, field: str) -> Iterator[Fault]:
    """What is wrong with two fields that are right one by one."""
    spec = _at(value, "spec")
    scaling = _at(spec, "deployment", "scaling")
    least, most = _at(scaling, "min_replicas"), _at(scaling, "max_replicas")
    if _is_whole(least) and _is_whole(most):
        where = _dotted(field, ("spec", "deployment", "scaling"))
        if most < least:
            message = f"it is less than min_replicas; give at least {least}"
            yield Fault(f"{where}.max_replicas", f"{where}.max_replicas: {message}")
        if least == 0:
            message = "an autoscaler leaves at least one replica; give 1 or more, or leave max_replicas out"
            yield Fault(f"{where}.min_replicas", f"{where}.min_replicas: {message}")
    elif most is None and _is_whole(_at(scaling, "target_cpu_percent")):
        where = _dotted(field, ("spec", "deployment", "scaling", "target_cpu_percent"))
        yield Fault(where, f"{where}: it is the autoscaler's; give max_replicas too, or leave it out")
    tier = _at(spec, "access_tier")
    if _at(spec, "deployment", "egress") and tier in SpecForm.tiers() and tier != AccessTier.POLICY:
        where = _dotted(field, ("spec", "deployment", "egress"))
        yield Fault(
            where, f"{where}: only {AccessTier.POLICY.value} names its networks, and this is {tier}; leave it out"
        )


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _dotted(field: str, place: Sequence[str | int]) -> str:
    return dotted(field, place).removeprefix(".")
