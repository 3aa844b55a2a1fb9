"""Writes and deletes a deployment's objects in a cluster, one by one, each only where it is the platform's own.

An object of somebody else that has a name which is needed is refused, and never changed. Each write may be the last one
of this process: the Deployment comes last and has the digest of the others, and what is taken away is found by labels.
"""

from collections.abc import Mapping
from typing import Any

from backplane.domain.deployments import Deployment
from backplane.errors import Unavailable
from backplane.kubernetes.api import ApiRefused, ApiServer
from controller.deployments.kubernetes.objects import (
    DEPLOYMENT,
    DEPLOYMENT_LABEL,
    INSTANCE_LABEL,
    MANAGED_BY,
    MANAGER,
    NETWORK_POLICY,
    POD,
    REPLICA_SET,
    SERVICE,
    ClusterRules,
    Declared,
    ObjectKind,
    ServerKinds,
    namespace_object,
)
from controller.deployments.kubernetes.reading import LiveObjects, surplus
from controller.deployments.target import Removal, TargetRefused

Json = dict[str, Any]

KEEPER = "agent-platform-replicas"
"""The field manager that keeps the number of replicas while it goes over to an autoscaler: a field that nobody has any
more would be 1 again."""
PAGE = 500


class ObjectWriter:
    """Of one platform in one cluster."""

    def __init__(self, api: ApiServer, rules: ClusterRules, kinds: ServerKinds) -> None:
        self._api = api
        self._rules = rules
        self._kinds = kinds

    async def write(self, deployment: Deployment, declared: Declared, live: LiveObjects) -> None:
        """Raises TargetRefused and Unavailable."""
        try:
            await self._open_namespace(deployment.namespace)
            for kind, one in declared.objects:
                await self._check_owner(kind, one, live)
            await self._take_away_surplus(deployment, declared, live)
            for kind, one in declared.objects:
                if kind is DEPLOYMENT:
                    await self._hand_over_replicas(one, live)
                await self._apply(kind.path(deployment.namespace, one["metadata"]["name"]), one)
        except ApiRefused as refused:
            raise _judged(refused, deployment.namespace) from None

    async def remove(self, removal: Removal) -> str:
        """What is left, in words. Raises TargetRefused and Unavailable."""
        try:
            return await self._remove(removal)
        except ApiRefused as refused:
            raise _judged(refused, removal.namespace) from None

    async def _open_namespace(self, name: str) -> None:
        path = f"/api/v1/namespaces/{name}"
        found = await self._find(path)
        if found is None:
            await self._apply(path, namespace_object(name, self._rules))
            return
        if "deletionTimestamp" in found["metadata"]:
            message = f"the namespace {name} is being deleted; it is made anew when it is gone"
            raise Unavailable(message, part="kubernetes")
        if not self._is_own(found):
            raise TargetRefused(
                f"the namespace {name} is there already and belongs to {_owner(found)}; choose another one, or let who "
                f"runs the cluster label it {MANAGED_BY}={MANAGER} and {INSTANCE_LABEL}={self._rules.platform_id}"
            )

    async def _check_owner(self, kind: ObjectKind, wanted: Json, live: LiveObjects) -> None:
        name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
        if live.of(kind, name) is not None:
            return
        found = await self._find(kind.path(namespace, name))
        id = wanted["metadata"]["labels"].get(DEPLOYMENT_LABEL)
        if found is not None and not (self._is_own(found) and _labels(found).get(DEPLOYMENT_LABEL) == id):
            raise TargetRefused(
                f"{kind.name} {name} is there already in {namespace} and belongs to {_owner(found)}; it is left as it "
                "is: delete or rename it, or choose another namespace"
            )

    async def _take_away_surplus(self, deployment: Deployment, declared: Declared, live: LiveObjects) -> None:
        kinds = {kind.name: kind for kind in (self._kinds.budget, self._kinds.autoscaler)}
        for kind_name, name in surplus(declared, live):
            if kind_name in kinds:
                one = live.objects[kind_name, name]
                await self._delete(kinds[kind_name].path(deployment.namespace, name), one)

    async def _hand_over_replicas(self, wanted: Json, live: LiveObjects) -> None:
        made = live.deployment
        if made is None or "replicas" in wanted["spec"]:
            return
        own = [one for one in made["metadata"].get("managedFields", ()) if one.get("manager") == MANAGER]
        if any("f:replicas" in one.get("fieldsV1", {}).get("f:spec", {}) for one in own):
            kept = {key: wanted[key] for key in ("apiVersion", "kind")}
            kept |= {"metadata": {"name": wanted["metadata"]["name"]}, "spec": {"replicas": made["spec"]["replicas"]}}
            path = DEPLOYMENT.path(wanted["metadata"]["namespace"], wanted["metadata"]["name"])
            await self._api.apply(path, kept, manager=KEEPER)

    async def _remove(self, removal: Removal) -> str:
        left: dict[str, int] = {}
        orphan = {"propagationPolicy": "Orphan"}
        # Pods last but for the policy, which holds them to its networks until they are gone. What made them goes first
        # and does not take them with it: only so they get the grace that was asked for.
        for kind, options in (
            (self._kinds.autoscaler, {}),
            (DEPLOYMENT, orphan),
            (REPLICA_SET, orphan),
            (POD, {"gracePeriodSeconds": removal.grace_seconds}),
            (self._kinds.budget, {}),
            (SERVICE, {}),
        ):
            left[kind.name] = await self._delete_all(kind, removal, options)
        if not any(left.values()):
            left[NETWORK_POLICY.name] = await self._delete_all(NETWORK_POLICY, removal, {})
        return ", ".join(f"{number} {name}{'s' if number > 1 else ''}" for name, number in left.items() if number)

    async def _delete_all(self, kind: ObjectKind, removal: Removal, options: Json) -> int:
        """How many there still are after what was deleted at once is gone."""
        selector = f"{DEPLOYMENT_LABEL}={removal.id},{INSTANCE_LABEL}={self._rules.platform_id}"
        path = kind.path(removal.namespace)
        found = [one async for one in self._api.pages(path, [("labelSelector", selector)], page=PAGE)]
        for one in found:
            if _may_be_deleted(one, options.get("gracePeriodSeconds")):
                await self._delete(kind.path(removal.namespace, one["metadata"]["name"]), one, options)
        if not found:
            return 0
        return len([one async for one in self._api.pages(path, [("labelSelector", selector)], page=PAGE)])

    async def _delete(self, path: str, one: Json, options: Json | None = None) -> None:
        """This very object: another one that has its name by now stays."""
        body = {"preconditions": {"uid": one["metadata"]["uid"]}, **(options or {})}
        try:
            await self._api.call("DELETE", path, body=body)
        except ApiRefused as refused:
            if refused.status not in (404, 409):
                raise

    async def _find(self, path: str) -> Json | None:
        try:
            return await self._api.call("GET", path)
        except ApiRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def _apply(self, path: str, one: Json) -> None:
        await self._api.apply(path, one, manager=MANAGER)

    def _is_own(self, found: Json) -> bool:
        labels = _labels(found)
        return labels.get(MANAGED_BY) == MANAGER and labels.get(INSTANCE_LABEL) == self._rules.platform_id


def _may_be_deleted(one: Json, grace: int | None) -> bool:
    """Whether to ask for it: what is ending already is asked again only to end sooner."""
    metadata = one["metadata"]
    if "deletionTimestamp" not in metadata:
        return True
    return grace is not None and metadata.get("deletionGracePeriodSeconds", 0) > grace


def _labels(one: Json) -> Mapping[str, str]:
    return one["metadata"].get("labels") or {}


def _owner(found: Json) -> str:
    """Whose an object is, as far as it says so."""
    labels = _labels(found)
    if (manager := labels.get(MANAGED_BY)) == MANAGER:
        instance, id = labels.get(INSTANCE_LABEL, "?"), labels.get(DEPLOYMENT_LABEL)
        return f"the agent platform {instance}" + (f", its deployment {id}" if id else "")
    if manager:
        return f"what calls itself {manager}"
    wrote = next((one["manager"] for one in found["metadata"].get("managedFields", ()) if one.get("manager")), "")
    return f"whoever made it with {wrote}" if wrote else "somebody else"


def _judged(refused: ApiRefused, namespace: str) -> Exception:
    """A quota, an admission rule or a value that the cluster does not take stays until somebody changes something."""
    if refused.status in (404, 409) or "being terminated" in refused.message:
        return Unavailable(f"the cluster is not ready for it: {refused.message}", part="kubernetes")
    if refused.status == 401 or (refused.status == 403 and "cannot" in refused.message):
        return refused.unavailable(f"change deployments in {namespace} (k8s/components/deployments)")
    return TargetRefused(f"the cluster refuses it: {refused.message}")
