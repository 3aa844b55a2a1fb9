"""The sandbox as a Kubernetes Job, from the settings."""

from contextlib import AbstractAsyncContextManager

from backplane.settings import Settings, fixed
from worker.metrics import WorkerMetrics
from worker.sandbox.kubernetes.manifest import WORKSPACE, JobSettings
from worker.sandbox.kubernetes.pod.packed import runner_argv
from worker.sandbox.kubernetes.pool import PodSettings
from worker.sandbox.kubernetes.sandbox import KubernetesSandbox, Starts, open_kubernetes_sandbox
from worker.sandbox.limits import limits_of


def open_sandbox(
    settings: Settings, worker_id: str, metrics: WorkerMetrics
) -> AbstractAsyncContextManager[KubernetesSandbox]:
    jobs = JobSettings(
        namespace=settings.sandbox_namespace,
        image=settings.sandbox_image,
        argv=runner_argv(WORKSPACE, fixed.SANDBOX_IDLE_SECONDS, settings.sandbox_tmp_bytes),
        worker_id=worker_id,
        ttl_seconds=settings.sandbox_job_ttl_seconds,
        tmp_bytes=settings.sandbox_tmp_bytes,
        runtime_class=settings.sandbox_runtime_class,
        node_selector=settings.sandbox_node_selector,
        tolerations=settings.sandbox_tolerations,
        pull_secrets=settings.sandbox_pull_secrets,
    )
    return open_kubernetes_sandbox(
        jobs,
        PodSettings(
            own_limits=limits_of(settings),
            start_seconds=settings.sandbox_start_seconds,
            idle_seconds=fixed.SANDBOX_IDLE_SECONDS,
            longest_run_seconds=settings.run_timeout_max_seconds,
            reuses=settings.sandbox_reuse == "per_run",
            pool_size=settings.sandbox_pool_size,
        ),
        Starts(metrics.sandbox_started, metrics.sandbox_failed, metrics.pool_ready),
    )
