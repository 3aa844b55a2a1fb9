"""A whole controller beside a cluster: it finds its work there by its settings."""

import asyncio
from pathlib import Path

import pytest

from agentctl.local.embedded import free_port
from backplane.settings import Settings, fixed
from controller.deletion_cost import ANNOTATION
from controller.service import serve
from tests.kubernetes.controller.conftest import Cluster, Platform
from tests.metrics import scrape
from tests.waiting import wait_until

SOME_SECONDS = 90.0


async def test_a_controller_collects_jobs_counts_them_and_sets_the_costs_of_pods(
    kubernetes: Cluster,
    platform: Platform,
    redis: str,
    sqlite_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed, "SANDBOX_COLLECT_SECONDS", 0.2)
    monkeypatch.setattr(fixed, "POD_DELETION_COST_SECONDS", 0.2)
    await kubernetes.make_job("of-nobody")
    kept = await kubernetes.job_of(await platform.running_run(), generation=1)
    pod = await kubernetes.make_pod("agent-worker-5d8-x", app="agent-worker")
    await kubernetes.annotate(pod, ANNOTATION, "7")
    settings = Settings.model_validate(
        {
            "redis_url": redis,
            "database_url": sqlite_database,
            "workspace_dir": tmp_path,
            "sandbox": "kubernetes",
            "sandbox_namespace": kubernetes.namespace,
            "lease_seconds": 2,
            "heartbeat_seconds": 1,
            "pod_deletion_cost": True,
            "pod_deletion_cost_selector": "app=agent-worker",
            "pod_namespace": kubernetes.namespace,
            "metrics_port": free_port(),
        }
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, stop))

    async def is_done() -> bool:
        return await kubernetes.jobs() == {kept} and await kubernetes.annotation(pod, ANNOTATION) == "0"

    await wait_until(is_done, SOME_SECONDS)
    found = await scrape(f"http://127.0.0.1:{settings.metrics_port}")
    assert found.value("agent_sandbox_jobs_collected_total") == 1
    stop.set()
    await serving
