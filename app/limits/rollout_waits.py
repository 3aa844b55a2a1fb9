"""Calls that wait for a rollout: they answer when it has ended, or after a time.

A user's calls that wait at once are limited. One that is over the limit answers at once: how long a call waits is no
promise.
"""

import asyncio
from collections import Counter

from starlette.types import Scope

from app.edge.turns import give_back
from backplane.domain.deployments import Deployment, DeploymentStatus
from backplane.domain.users import User
from backplane.store import DeploymentStore

WAITING_OF_USER = 8
LOOK_SECONDS = 0.5


class RolloutWaits:
    def __init__(self, deployments: DeploymentStore) -> None:
        self._deployments = deployments
        self._waiting = Counter[str]()

    async def settled(self, scope: Scope, user: User, deployment: Deployment, seconds: float) -> Deployment:
        """The deployment when nothing is on its way any more, or after so long. `scope`: of the request. Raises
        NotFound where it went meanwhile."""
        if not seconds or self._waiting[user.id] >= WAITING_OF_USER:
            return deployment
        give_back(scope)
        self._waiting[user.id] += 1
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            while _is_on_its_way(deployment) and (left := deadline - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(min(LOOK_SECONDS, left))
                deployment = await self._deployments.get(None, deployment.id)
            return deployment
        finally:
            self._waiting[user.id] -= 1
            if not self._waiting[user.id]:
                del self._waiting[user.id]


def _is_on_its_way(deployment: Deployment) -> bool:
    """Not what waits for a person."""
    is_asked = deployment.paused or deployment.awaits_approval or deployment.deleted_at is not None
    return deployment.status is DeploymentStatus.DEPLOYING and not is_asked
