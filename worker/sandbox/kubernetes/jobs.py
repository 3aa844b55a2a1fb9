"""The Jobs and pods of one worker on a Kubernetes cluster, as they are now: made, found, waited for, removed.

One watch on all the worker's pods reports what each of them does, and wakes those who wait for it. So a hundred Jobs
cost the API server no more than their own creation. One command costs three requests (create, exec, delete), however
long it runs; to claim a Job that was started ahead takes two patches instead of the create. Events are asked for only
while a Job has no pod.

It knows nothing of commands, workspaces or the content of streams: `worker.sandbox.kubernetes.sandbox` does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from backplane.domain.sandbox_labels import WORKER, label_value
from backplane.errors import Unavailable
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.kubernetes.exec_stream import ExecStream
from backplane.kubernetes.watch import ObjectWatch
from backplane.process.retrying import pauses
from worker.sandbox.base import NoticeSink, SandboxError, SandboxQuotaExceeded, SandboxRefused
from worker.sandbox.kubernetes import pod_state
from worker.sandbox.kubernetes.manifest import CONTAINER, selector, worker_labels
from worker.sandbox.kubernetes.pod_state import EndReason, PodEnd, Running, Waiting

FIRST_LOOK_SECONDS = 2.0
"""A Job without a pod is looked at after so long; a wait that is shorter is ordinary, and gives no notice."""
NEXT_LOOK_SECONDS = 10.0
BEING_DELETED_TRIES = 8


@dataclass(frozen=True, slots=True)
class FoundJob:
    name: str
    labels: Mapping[str, str]
    is_finished: bool
    created: datetime


@dataclass(slots=True)
class _Tracked:
    """What is known of a Job: its pod, and how that ended, which stays known after the pod is gone. Unless this worker
    wants to know of it (`is_wanted`), it is dropped with its pod. `is_deleted`: this worker has deleted it."""

    pod: dict[str, Any] | None = None
    end: PodEnd | None = None
    is_wanted: bool = False
    is_deleted: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class _JobLook:
    """The worker's Jobs, and why no pod is made of some, at one moment of the loop's clock."""

    at: float
    jobs: Mapping[str, dict[str, Any]]
    complaints: Mapping[str, str]


class WorkerJobs:
    """Made by `open_worker_jobs`. Whatever asks the API server raises Unavailable when it cannot be reached."""

    def __init__(self, api: ApiServer, namespace: str, worker_id: str) -> None:
        self._api = api
        self._namespace = namespace
        self._worker = label_value(worker_id)
        self._selector = selector(worker_labels(worker_id))
        self._jobs_path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods_path = f"/api/v1/namespaces/{namespace}/pods"
        self._events_path = f"/api/v1/namespaces/{namespace}/events"
        self._tracked: dict[str, _Tracked] = {}
        self.watch = ObjectWatch(
            api,
            self._pods_path,
            self._selector,
            self,
            name="the sandboxes' pods",
            refused=lambda refused: self._refusal(refused, "GET", self._pods_path),
        )
        self._looking = asyncio.Lock()
        self._look = _JobLook(float("-inf"), {}, {})

    @property
    def requests(self) -> int:
        """How many requests went to the API server so far."""
        return self._api.requests

    async def create(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the Job is new: one of the same name that exists is taken for the same. Raises SandboxQuotaExceeded
        and SandboxRefused."""
        name = manifest["metadata"]["name"]
        for number, pause in enumerate(pauses(), start=1):
            try:
                await self._api.call("POST", self._jobs_path, body=manifest)
            except ApiRefused as refused:
                if refused.status != 409:
                    raise self._not_created(refused) from None
                if "being deleted" not in refused.message:
                    self._want(name)
                    return False
                if number == BEING_DELETED_TRIES:
                    raise Unavailable(f"the Job {name} of before is still being deleted", part="sandbox") from None
                await asyncio.sleep(pause)
            else:
                self._want(name)
                return True
        raise AssertionError("pauses never end")

    async def started(self, name: str, seconds: float, notice: NoticeSink) -> str:
        """The name of the Job's pod once its container runs. Raises the SandboxError that says why it does not: at
        once where no wait helps, else after `seconds`; what it waits for until then goes to `notice`."""
        tracked = self._want(name)
        clock = asyncio.get_running_loop().time
        begun = clock()
        look_at, noticed, waiting = begun + FIRST_LOOK_SECONDS, "", pod_state.no_pod("")
        while True:
            changed = tracked.changed
            if tracked.end:
                raise (await self._explained(name, tracked, tracked.end)).error()
            state = pod_state.read(tracked.pod) if tracked.pod else None
            if isinstance(state, Running):
                return state.pod
            if isinstance(state, Waiting):
                waiting = state
            elif clock() >= look_at:
                waiting = await self._why_no_pod(name)
                look_at = clock() + NEXT_LOOK_SECONDS
            if waiting.is_final:
                raise waiting.failure
            over = begun + seconds
            if clock() >= over:
                raise Unavailable(self.watch.trouble, part="sandbox") if self.watch.trouble else waiting.failure
            words = self.watch.trouble or waiting.words
            if words != noticed and clock() >= begun + FIRST_LOOK_SECONDS:
                notice(words)
                noticed = words
            until = min(over, look_at) if state is None or not noticed else over
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - clock())):
                    await changed.wait()

    async def ended(self, name: str) -> PodEnd:
        """Why the Job's pod runs no more, once that is so; at once when there is no such Job."""
        tracked = self._tracked.get(name)
        if not tracked or not (tracked.pod or tracked.end):
            job = await self._job(name)
            if job is None or pod_state.is_finished(job):
                return pod_state.deleted(job)
            tracked = self._want(name)
        while True:
            changed = tracked.changed
            if tracked.end:
                return await self._explained(name, tracked, tracked.end)
            await changed.wait()

    async def find(self, labels: Mapping[str, str]) -> list[FoundJob]:
        """The Jobs, of whatever worker, that have these labels and are not being deleted."""
        answer = await self._call("GET", self._jobs_path, [("labelSelector", selector(labels))])
        return [_found(job) for job in answer["items"] if not job["metadata"].get("deletionTimestamp")]

    async def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Set these labels on a Job and its pod, and take off those that are None. Raises SandboxError when either is
        gone."""
        patch = {"metadata": {"labels": dict(labels)}}
        try:
            pods = [f"{self._pods_path}/{pod}" for pod in await self._pod_names(name)]
            paths = [f"{self._jobs_path}/{name}", *pods]
            await asyncio.gather(*(self._call("PATCH", path, body=patch) for path in paths))
        except ApiRefused as refused:
            raise SandboxError(f"the Job {name} is gone; the step can be tried again") from refused

    async def delete(self, name: str) -> None:
        """Begin to remove the Job, which stays until its pod is gone. One that is gone already is fine."""
        query = [("propagationPolicy", "Foreground")]
        with contextlib.suppress(ApiRefused):
            await self._call("DELETE", f"{self._jobs_path}/{name}", query)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Forget the Job: this worker does not ask about it any more."""
        if tracked := self._tracked.get(name):
            tracked.is_wanted, tracked.is_deleted = False, True
            self._drop_unused(name, tracked)

    async def deleted(self, name: str, seconds: float) -> bool:
        """Whether the Job and its pod are gone before `seconds` are over."""
        query = [("fieldSelector", f"metadata.name={name}")]
        try:
            async with asyncio.timeout(seconds):
                for pause in pauses():
                    with contextlib.suppress(Unavailable, ApiRefused):
                        found = await self._api.call("GET", self._jobs_path, query)
                        if not found["items"]:
                            return True
                        version = found["metadata"]["resourceVersion"]
                        async with contextlib.aclosing(self._api.watch(self._jobs_path, query, version)) as events:
                            async for kind, _ in events:
                                if kind == "DELETED":
                                    return True
                    await asyncio.sleep(pause)
        except TimeoutError:
            pass
        return False

    @contextlib.asynccontextmanager
    async def exec(self, pod: str, argv: Sequence[str]) -> AsyncIterator[ExecStream]:
        """Run `argv` beside what runs in the pod's container, and speak with it; both its pipes are closed at the end.
        Raises SandboxRefused where the worker may not, and Unavailable when the container does not run."""
        try:
            async with self._api.exec(self._namespace, pod, argv, container=CONTAINER) as stream:
                yield stream
        except ApiRefused as refused:
            if refused.status == 403:
                raise self._forbidden("create and get pods/exec") from None
            raise Unavailable(
                f"no process can be started in pod {pod} ({refused.message}): its container does not run yet, or no "
                "more",
                part="sandbox",
            ) from None

    # --- the watch ---

    def listed(self, items: list[dict[str, Any]]) -> None:
        """A pod that was known and is not among these has ended."""
        for pod in items:
            self.changed(pod)
        present = {pod["metadata"]["uid"] for pod in items}
        for tracked in list(self._tracked.values()):
            if tracked.pod and tracked.pod["metadata"]["uid"] not in present:
                self.removed(tracked.pod)

    def changed(self, pod: dict[str, Any]) -> None:
        name = _job_of(pod)
        tracked = self._tracked.setdefault(name, _Tracked())
        if tracked.end:
            return  # a second pod of the same Job is none of ours: what was to run was in the first
        tracked.pod = pod
        state = pod_state.read(pod)
        if isinstance(state, PodEnd):
            tracked.end = state
        tracked.wake()

    def removed(self, pod: dict[str, Any]) -> None:
        name = _job_of(pod)
        tracked = self._tracked.get(name)
        if not tracked or not tracked.pod or tracked.pod["metadata"]["uid"] != pod["metadata"]["uid"]:
            return
        tracked.pod = None
        tracked.end = tracked.end or pod_state.deleted(None)
        tracked.wake()
        self._drop_unused(name, tracked)

    def _want(self, name: str) -> _Tracked:
        tracked = self._tracked.setdefault(name, _Tracked())
        tracked.is_wanted = True
        return tracked

    def _drop_unused(self, name: str, tracked: _Tracked) -> None:
        if not tracked.is_wanted and not tracked.pod:
            self._tracked.pop(name, None)

    # --- questions ---

    async def _explained(self, name: str, tracked: _Tracked, end: PodEnd) -> PodEnd:
        """Why a pod has ended. Where the pod is gone, its Job may have the reason."""
        if end.reason is not EndReason.DELETED or tracked.is_deleted:
            return end
        job = await self._job(name)
        labels = job["metadata"].get("labels", {}) if job else {}
        if labels.get(WORKER, self._worker) != self._worker:
            return PodEnd(EndReason.TAKEN, "another worker has taken the sandbox over")
        return pod_state.deleted(job)

    async def _why_no_pod(self, name: str) -> Waiting:
        async with self._looking:
            look = self._look
            if name not in look.jobs or asyncio.get_running_loop().time() - look.at > NEXT_LOOK_SECONDS / 2:
                look = self._look = await self._look_at_all()
        job = look.jobs.get(name)
        if job is None or pod_state.is_finished(job):
            failure = pod_state.deleted(job).error()
            return Waiting(failure.message, failure, is_final=True)
        return pod_state.no_pod(look.complaints.get(name, ""))

    async def _look_at_all(self) -> "_JobLook":
        """One look for all that wait for a pod: a hundred that wait must not ask a hundred times."""
        jobs = await self._call("GET", self._jobs_path, [("labelSelector", self._selector)])
        failed = [("fieldSelector", "involvedObject.kind=Job,reason=FailedCreate")]
        events = (await self._call("GET", self._events_path, failed))["items"]
        events.sort(key=lambda event: str(event.get("lastTimestamp") or ""))
        return _JobLook(
            asyncio.get_running_loop().time(),
            {job["metadata"]["name"]: job for job in jobs["items"]},
            {event["involvedObject"]["name"]: str(event.get("message") or "") for event in events},
        )

    async def _job(self, name: str) -> dict[str, Any] | None:
        try:
            job: dict[str, Any] = await self._call("GET", f"{self._jobs_path}/{name}")
            return job
        except ApiRefused:
            return None

    async def _pod_names(self, name: str) -> list[str]:
        tracked = self._tracked.get(name)
        if tracked and tracked.pod:
            return [tracked.pod["metadata"]["name"]]
        answer = await self._call("GET", self._pods_path, [("labelSelector", f"job-name={name}")])
        return [pod["metadata"]["name"] for pod in answer["items"]]

    async def _call(self, method: str, path: str, query: Sequence[tuple[str, str]] = (), body: Any = None) -> Any:
        """Raises ApiRefused only for what does not exist (404)."""
        try:
            return await self._api.call(method, path, query, body)
        except ApiRefused as refused:
            if refused.status == 404:
                raise
            raise self._refusal(refused, method, path) from None

    def _refusal(self, refused: ApiRefused, method: str, path: str) -> SandboxError:
        if refused.status == 403:
            return self._forbidden(refused.message)
        return SandboxError(f"the Kubernetes API server refuses {method} {path}: {refused.message}")

    def _forbidden(self, what: str) -> SandboxRefused:
        return SandboxRefused(
            f"the worker's account may not do that in namespace {self._namespace}, or there is no such namespace: "
            f"{what}; check SANDBOX_NAMESPACE, and the Role and RoleBinding there"
        )

    def _not_created(self, refused: ApiRefused) -> SandboxError:
        if "exceeded quota" in refused.message:
            return SandboxQuotaExceeded(
                f"the quota of namespace {self._namespace} is used up: {refused.message}; it comes free as other "
                "sandboxes end, or raise the ResourceQuota"
            )
        return SandboxRefused(
            f"the cluster refuses the Job ({refused.status}): {refused.message}; check SANDBOX_NAMESPACE, what the "
            "worker's account may do there, and the SANDBOX_* settings"
        )


@contextlib.asynccontextmanager
async def open_worker_jobs(namespace: str, worker_id: str, kubeconfig: str = "") -> AsyncIterator[WorkerJobs]:
    """Jobs of the worker in the namespace; `kubeconfig` as for `open_api_server`. Raises Unavailable when there are no
    credentials or the API server does not answer, SandboxRefused when it does not allow what is needed."""
    async with open_api_server(kubeconfig, part="sandbox") as api:
        jobs = WorkerJobs(api, namespace, worker_id)
        await jobs.watch.list()
        watching = asyncio.create_task(jobs.watch.keep())
        try:
            yield jobs
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _job_of(pod: Mapping[str, Any]) -> str:
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner["kind"] == "Job":
            return str(owner["name"])
    return ""


def _found(job: Mapping[str, Any]) -> FoundJob:
    metadata = job["metadata"]
    return FoundJob(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        is_finished=pod_state.is_finished(job),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
    )
