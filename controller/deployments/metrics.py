"""What the loop of deployments counts. The controller that leads shows the deployments; another one shows none."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from backplane.domain.deployments import Deployment, DeploymentStatus, RevisionOutcome


class DeploymentMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._deployments = Gauge(
            "controller_deployments",
            "Deployments by status, those that are being deleted apart.",
            ["status"],
            registry=registry,
        )
        self._ready = Gauge("controller_deployments_ready_replicas", "Replicas that are ready.", registry=registry)
        self._drifted = Gauge(
            "controller_deployments_drifted",
            "Deployments that somebody has changed in their target.",
            registry=registry,
        )
        self._applies = Counter(
            "controller_deployments_applies",
            "Writes of a deployment to its target, by result: ok, refused, unavailable.",
            ["result"],
            registry=registry,
        )
        self._rollouts = Counter(
            "controller_deployments_rollouts",
            "Rollouts of revisions that ended, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._rollbacks = Counter(
            "controller_deployments_rollbacks", "Deployments that went back by themselves.", registry=registry
        )
        self._looks = Gauge(
            "controller_deployments_look_seconds", "How long the last look at the target took.", registry=registry
        )

    def saw(self, deployments: Sequence[Deployment], look_seconds: float) -> None:
        tally = Tally("deleting" if one.deleted_at else one.status.value for one in deployments)
        for status in (*(status.value for status in DeploymentStatus), "deleting"):
            self._deployments.labels(status).set(tally[status])
        self._ready.set(sum(one.rollout.ready_replicas for one in deployments))
        self._drifted.set(sum(bool(one.rollout.drift) for one in deployments))
        self._looks.set(look_seconds)

    def another_leads(self) -> None:
        self._deployments.clear()
        for gauge in (self._ready, self._drifted, self._looks):
            gauge.set(float("nan"))

    def applied(self, result: str) -> None:
        self._applies.labels(result).inc()

    def rollout_ended(self, outcome: RevisionOutcome) -> None:
        self._rollouts.labels(outcome.value).inc()

    def rolled_back(self) -> None:
        self._rollbacks.inc()
