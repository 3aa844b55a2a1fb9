"""All deployments as they are wanted, of which a pass reads from the database only those that have changed since.

A manifest takes longer to read than all else of a row, and most passes find nothing new.
"""

from backplane.domain.deployments import Deployment, DeploymentKey
from backplane.store import DeploymentStore


class WantedDeployments:
    def __init__(self, store: DeploymentStore) -> None:
        self._store = store
        self._known: dict[str, tuple[DeploymentKey, Deployment]] = {}

    async def read(self) -> list[Deployment]:
        """All that are not gone, also those that are being deleted, by id. Raises Unavailable."""
        keys = await self._store.keys_of_all()
        known = {id: self._known[id] for id, key in keys.items() if id in self._known and self._known[id][0] == key}
        # One that changes again meanwhile is read newer than its key, and so once more in the next pass.
        found = await self._store.of_ids([id for id in keys if id not in known])
        known |= {one.id: (keys[one.id], one) for one in found}
        self._known = known
        return [known[id][1] for id in keys if id in known]
