"""The port to where deployments run: a cluster, or the containers of one machine.

An adapter is looked through once a pass of the loop (`look`), so that many deployments cost a few requests. What it
answers afterwards is about that look. All that it changes is idempotent: a controller may be killed between any two of
its writes, and two controllers may do the same at once.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime

from backplane.domain.deployments import Deployment, PrintedLine, Rollout


class TargetRefused(Exception):
    """The target does not take what was declared, in its own words; it is wrong until somebody changes something."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SeenDeployment:
    """`is_as_declared`: the revision that may run was written as a whole, and each of its objects is there."""

    rollout: Rollout
    is_as_declared: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to be taken away. `grace_seconds`: of its replicas."""

    id: str
    namespace: str
    grace_seconds: int


def replicas_wanted(deployment: Deployment) -> int | None:
    """Of the revision that the target is to have, which may be an older one than the row's number is about; None: an
    autoscaler decides, or nothing may run."""
    if deployment.effective is None or deployment.effective.manifest.is_autoscaled:
        return None
    if deployment.replicas is not None:
        return deployment.replicas
    return deployment.effective.manifest.scaling.min_replicas


class DeployTarget(ABC):
    @abstractmethod
    async def look(self, deployments: Sequence[Deployment]) -> None:
        """Raises Unavailable."""

    @abstractmethod
    def seen(self, deployment: Deployment) -> SeenDeployment: ...

    @abstractmethod
    async def apply(self, deployment: Deployment) -> None:
        """Make it as its current revision says. Raises TargetRefused, and Unavailable where another try may help."""

    @abstractmethod
    async def remove(self, removal: Removal) -> str:
        """Take away all of it that is ours. What is still left, in words; empty: it is proved that nothing is. Raises
        TargetRefused and Unavailable."""

    @abstractmethod
    def left(self) -> Sequence[Removal]:
        """Of which the last look found something, and which were not among the deployments that it was about."""

    @abstractmethod
    def replicas(self, deployment: Deployment) -> Sequence[str]:
        """Names of the replicas whose output can be read."""

    @abstractmethod
    def printed(
        self, deployment: Deployment, replica: str, since: datetime | None
    ) -> AsyncGenerator[PrintedLine, None]:
        """What a replica prints, from `since` on or from its beginning, until it ends. Lines of up to a second before
        `since` may come again. Times rise, and are cut to microseconds, as they are stored. Raises Unavailable."""

    @abstractmethod
    async def close(self) -> None: ...
