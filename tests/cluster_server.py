"""A Kubernetes API server on loopback, as far as deployments need one: objects, server-side apply with the owners of
fields, lists by label in pages, deletes with preconditions, and rights.

It stands in for a cluster where a test must say when the server fails, or at which write a controller is killed. What
a cluster does by itself is done at once and by few rules: a Deployment has its pods as soon as it is written, and they
are ready unless their image is broken. What a real one does otherwise, tests/kubernetes finds. It has no watches, for
the controller of deployments lists.
"""

import asyncio
import copy
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Path = tuple[str, str, str, str]
"""Group and version, plural, namespace, name."""

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<sub>/log)?"
)
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
GROUPS = ("apps/v1", "networking.k8s.io/v1", "policy/v1", "autoscaling/v2")


class Refusal(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Received:
    method: str
    path: str

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


class ClusterServer:
    """`role`: the rules of a ClusterRole; None: everything is allowed. `broken`: images that cannot be pulled."""

    def __init__(self, role: Sequence[Json] | None = None) -> None:
        self.role = role
        self.broken: set[str] = set()
        self.objects: dict[Path, Json] = {}
        self.requests: list[Received] = []
        self.failures: list[tuple[Callable[[Received], bool], int]] = []
        """Each is used once: for the first request that fits, the status that it is answered with."""
        self.hangs_after: int | None = None
        """The write with this number is done and never answered, nor is any further request."""
        self.writes = 0
        self.hanging = asyncio.Event()
        self._goes_on = asyncio.Event()
        self._version = 0
        self.url = ""

    # --- what a test looks at and does ---

    def of(self, plural: str) -> list[Json]:
        return [one for (_, kind, _, _), one in self.objects.items() if kind == plural]

    def let_go(self) -> None:
        """Answer again, from now on; who waits for an answer gets none."""
        self.hangs_after = None
        self.hanging.clear()
        self._goes_on.set()
        self._goes_on = asyncio.Event()

    def fail(self, status: int, fits: Callable[[Received], bool] = lambda _: True, times: int = 1) -> None:
        self.failures += [(fits, status)] * times

    def put(self, root: str, plural: str, one: Json) -> Json:
        """As somebody else does it, who asks nobody."""
        metadata = one.setdefault("metadata", {})
        return self._store((root, plural, metadata.get("namespace", ""), metadata["name"]), one)

    def take_away_namespace(self, name: str) -> None:
        """With all that is in it."""
        for key in [key for key in self.objects if key[2] == name or (key[1] == "namespaces" and key[3] == name)]:
            del self.objects[key]

    # --- requests ---

    async def answer(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.method, request.path)
        self.requests.append(received)
        if self.hanging.is_set():
            await self._hang()
        try:
            for failure in self.failures:
                if failure[0](received):
                    self.failures.remove(failure)
                    raise Refusal(failure[1], "OnDemand", f"status {failure[1]} was asked for")
            found = self._done(request, await request.json() if request.can_read_body else None)
        except Refusal as refusal:
            status = {"kind": "Status", "reason": refusal.reason, "message": str(refusal), "code": refusal.status}
            return web.json_response(status, status=refusal.status)
        if received.is_write:
            self.writes += 1
            if self.writes == self.hangs_after:
                self.hanging.set()
                await self._hang()
        return web.Response(text=found) if isinstance(found, str) else web.json_response(found)

    async def _hang(self) -> None:
        await self._goes_on.wait()
        raise web.HTTPServiceUnavailable

    def _done(self, request: web.Request, body: Any) -> Json | str:
        if request.path == "/apis":
            return {"groups": [{"versions": [{"groupVersion": version}]} for version in GROUPS]}
        match = _PATH.fullmatch(request.path)
        if match is None:
            raise Refusal(404, "NotFound", f"the server could not find {request.path}")
        root, plural = match["core"] or match["group"], match["plural"]
        key = (root, plural, match["namespace"] or "", match["name"] or "")
        self._check_right(request.method, key, match["sub"] or "")
        if match["sub"]:
            return ""
        if request.method == "GET":
            return self._one(key) if key[3] else self._listed(key, request.query)
        if request.method == "DELETE":
            return self._deleted(key, body or {})
        if plural != "namespaces":
            self._check_namespace(key[2])
        if request.method == "POST":
            key = (*key[:3], body["metadata"]["name"])
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{plural} "{key[3]}" already exists')
            return self._store(key, {**body, "metadata": {**body["metadata"], "namespace": key[2]}})
        if request.content_type == "application/apply-patch+yaml":
            return self._applied(key, body, request.query["fieldManager"], force="force" in request.query)
        return self._store(key, _merged(self._one(key), body), manager="merge")

    def _check_right(self, method: str, key: Path, sub: str) -> None:
        if self.role is None:
            return
        root, plural, _, name = key
        group = root.rpartition("/")[0]
        verb = "list" if method == "GET" and not name else _VERBS[method]
        resource = plural + sub
        verbs = {verb, "create"} if method == "PATCH" and key not in self.objects else {verb}
        allowed = {
            each
            for rule in self.role
            if group in rule["apiGroups"] and resource in rule["resources"]
            for each in rule["verbs"]
        }
        if not verbs <= allowed:
            raise Refusal(403, "Forbidden", f"the controller cannot {verb} resource {resource!r}")

    def _check_namespace(self, name: str) -> None:
        namespace = self.objects.get(("v1", "namespaces", "", name))
        if namespace is None:
            raise Refusal(404, "NotFound", f'namespaces "{name}" not found')
        if "deletionTimestamp" in namespace["metadata"]:
            raise Refusal(403, "Forbidden", f"the namespace {name} is being terminated")

    def _one(self, key: Path) -> Json:
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[1]} "{key[3]}" not found')
        return self.objects[key]

    def _listed(self, key: Path, query: Mapping[str, str]) -> Json:
        wanted = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
        found = [
            one
            for (root, plural, namespace, _), one in sorted(self.objects.items())
            if (root, plural) == key[:2] and key[2] in ("", namespace)
            if all(one["metadata"].get("labels", {}).get(name) == value for name, value in wanted)
        ]
        begin, size = int(query.get("continue") or 0), int(query.get("limit") or 500)
        following = str(begin + size) if len(found) > begin + size else ""
        return {"metadata": {"continue": following}, "items": found[begin : begin + size]}

    def _deleted(self, key: Path, options: Json) -> Json:
        one = self._one(key)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid not in (None, one["metadata"]["uid"]):
            raise Refusal(409, "Conflict", "the precondition on the uid failed")
        del self.objects[key]
        if options.get("propagationPolicy") != "Orphan":
            for owned in [at for at, other in self.objects.items() if one["metadata"]["uid"] in _owners(other)]:
                self._deleted(owned, {})
        return one

    # --- server-side apply ---

    def _applied(self, key: Path, body: Json, manager: str, *, force: bool) -> Json:
        """Fields that this manager had and names no more go, and those of others stay."""
        there = copy.deepcopy(self.objects.get(key, {}))
        owned = {one["manager"]: one for one in there.get("metadata", {}).get("managedFields", ())}
        wanted = dict(_leaves({name: body[name] for name in body if name not in ("apiVersion", "kind")}))
        before = {path for path, _ in _leaves_of_fields(owned.get(manager, {}).get("fieldsV1", {}))}
        taken = {
            path: name
            for name, one in owned.items()
            if name != manager
            for path, _ in _leaves_of_fields(one["fieldsV1"])
        }
        for path, value in wanted.items():
            if path in taken and _at(there, path) != value and not force:
                raise Refusal(409, "Conflict", f"conflict with {taken[path]!r}: .{'.'.join(path)}")
        for path in before - wanted.keys():
            if path not in taken:
                _remove(there, path)
        for path, value in wanted.items():
            _set(there, path, value)
        if key[1] == "deployments":
            there["spec"].setdefault("replicas", 1)
        fields = {name: _without(one["fieldsV1"], wanted.keys()) for name, one in owned.items() if name != manager}
        fields[manager] = _fields(wanted.keys())
        there["metadata"]["managedFields"] = [{"manager": name, "fieldsV1": one} for name, one in fields.items() if one]
        there |= {"apiVersion": body["apiVersion"], "kind": body["kind"]}
        there["metadata"] |= {"name": key[3], **({"namespace": key[2]} if key[2] else {})}
        return self._store(key, there)

    def _store(self, key: Path, one: Json, manager: str = "") -> Json:
        self._version += 1
        before, metadata = self.objects.get(key), one["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", datetime.now(UTC).isoformat())
        generation = before["metadata"]["generation"] if before else 0
        has_changed = before is None or before.get("spec") != one.get("spec")
        metadata |= {"generation": generation + has_changed, "resourceVersion": str(self._version)}
        if manager:
            for owner in metadata.get("managedFields", ()):
                spec = owner["fieldsV1"].get("f:spec", {})
                spec.pop("f:replicas", None)
        self.objects[key] = one
        if key[1] == "deployments":
            self._roll_out(key, one)
        return one

    # --- what the cluster does by itself ---

    def _roll_out(self, key: Path, made: Json) -> None:
        spec, template = made["spec"], made["spec"]["template"]
        image = template["spec"]["containers"][0]["image"]
        wanted = spec.get("replicas", 1)
        uid = made["metadata"]["uid"]
        pods = {at: one for at, one in self.objects.items() if at[1] == "pods" and uid in _owners(one)}
        is_broken = image in self.broken
        new = [at for at, one in pods.items() if one["metadata"]["annotations"] == template["metadata"]["annotations"]]
        for at in [at for at in pods if at not in new][0 if not is_broken else len(pods) :] + new[wanted:]:
            self.objects.pop(at, None)
        for _ in range(1 if is_broken else wanted - len(new)):
            self._start_pod(key, made, is_broken=is_broken)
        ready = sum(_is_ready(one) for one in self.of("pods") if uid in _owners(one))
        updated = 1 if is_broken else wanted
        made["status"] = {
            "observedGeneration": made["metadata"]["generation"],
            "replicas": max(ready, wanted) + is_broken,
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [],
        }

    def _start_pod(self, key: Path, made: Json, *, is_broken: bool) -> None:
        template, name = made["spec"]["template"], f"{key[3]}-{uuid.uuid4().hex[:5]}"
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        container = {
            "name": "agent",
            "state": waiting if is_broken else {"running": {}},
            "restartCount": 0,
            "ready": not is_broken,
        }
        pod = {
            "metadata": {
                **copy.deepcopy(template["metadata"]),
                "name": name,
                "namespace": key[2],
                "ownerReferences": [{"uid": made["metadata"]["uid"]}],
            },
            "spec": template["spec"],
            "status": {
                "conditions": [{"type": "Ready", "status": "False" if is_broken else "True"}],
                "containerStatuses": [container],
            },
        }
        self._store(("v1", "pods", key[2], name), pod)


@asynccontextmanager
async def cluster_server(role: Sequence[Json] | None = None) -> AsyncIterator[ClusterServer]:
    server = ClusterServer(role)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.let_go()
        await runner.cleanup()


def _owners(one: Json) -> set[str]:
    return {owner["uid"] for owner in one["metadata"].get("ownerReferences", ())}


def _is_ready(pod: Json) -> bool:
    return any(one["status"] == "True" for one in pod["status"]["conditions"])


def _merged(there: Json, patch: Json) -> Json:
    merged = copy.deepcopy(there)
    for name, value in patch.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged


Leaf = tuple[str, ...]


def _leaves(value: Json, above: Leaf = ()) -> list[tuple[Leaf, Any]]:
    """Lists are one value: which of their entries is whose, no test asks."""
    found = []
    for name, inner in value.items():
        at = (*above, name)
        found += _leaves(inner, at) if isinstance(inner, dict) and inner else [(at, inner)]
    return [leaf for leaf in found if leaf[0] not in (("metadata", "name"), ("metadata", "namespace"))]


def _leaves_of_fields(fields: Json) -> list[tuple[Leaf, Any]]:
    return [(tuple(name.removeprefix("f:") for name in path), None) for path, _ in _leaves(fields)]


def _fields(paths: Any) -> Json:
    fields: Json = {}
    for path in paths:
        _set(fields, tuple(f"f:{name}" for name in path), {})
    return fields


def _without(fields: Json, paths: Any) -> Json:
    return _fields(path for path, _ in _leaves_of_fields(fields) if path not in paths)


def _at(one: Json, path: Leaf) -> Any:
    for name in path:
        one = one.get(name, {}) if isinstance(one, dict) else {}
    return one


def _set(one: Json, path: Leaf, value: Any) -> None:
    for name in path[:-1]:
        one = one.setdefault(name, {})
    one[path[-1]] = value


def _remove(one: Json, path: Leaf) -> None:
    for name in path[:-1]:
        one = one.get(name, {})
    one.pop(path[-1], None)
