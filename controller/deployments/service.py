"""The loop of deployments with what it needs, made of the settings."""

import os
import shlex
import socket
import uuid
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from backplane.containers.engine import ContainerEngine
from backplane.leases.redis import RedisLease
from backplane.resources import Resources
from backplane.settings import Settings
from controller.deployments.containers.plan import ContainerHost
from controller.deployments.containers.target import ContainerTarget
from controller.deployments.kubernetes.objects import ClusterRules
from controller.deployments.loop import DeploymentsLoop
from controller.deployments.metrics import DeploymentMetrics
from controller.deployments.target import DeployTarget
from controller.leader import Leader

PLATFORM_NAMESPACE = "agents"
"""Of the manifests in k8s/: for a controller that runs outside of the cluster and was given no other one."""

log = structlog.get_logger()


def deployments_loop(
    settings: Settings, resources: Resources, registry: CollectorRegistry, platform_id: str
) -> DeploymentsLoop:
    redis = resources.redis
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    leader = Leader(RedisLease(redis, redis.keys.deployments, name, seconds=settings.lease_seconds))
    target = _target(settings, platform_id)
    return DeploymentsLoop(resources.store.deployments, target, leader, DeploymentMetrics(registry))


def _target(settings: Settings, platform_id: str) -> DeployTarget:
    if settings.deploy_target == "container":
        engine = ContainerEngine(shlex.split(settings.deploy_container_engine))
        folder = Path(settings.deploy_env_dir) if settings.deploy_env_dir else None
        return ContainerTarget(engine, ContainerHost(platform_id, settings.deploy_bind, folder))
    # The HTTP library behind them takes 0.2 s and 25 MB.
    from backplane.kubernetes.login import own_namespace  # noqa: PLC0415
    from controller.deployments.kubernetes.target import KubernetesTarget  # noqa: PLC0415

    namespace = settings.pod_namespace or own_namespace() or PLATFORM_NAMESPACE
    return KubernetesTarget(ClusterRules(platform_id, namespace))
