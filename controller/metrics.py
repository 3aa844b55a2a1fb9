"""What a controller counts, and the measure of what all workspaces hold together.

That measure walks the whole store, so one controller takes it now and then, and publishes it with its time. While Redis
is away each controller takes it: take the newest, not the sum.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backplane.workspace.base import WorkspaceUsage

WebhookEnd = Literal["delivered", "failed", "given_up"]


class ControllerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._jobs_collected = Counter(
            "agent_sandbox_jobs_collected",
            "Sandbox Jobs that were removed because nobody needed them any more.",
            registry=registry,
        )
        self._sessions_removed = Counter(
            "agent_sessions_removed", "What old sessions had left and was removed.", ["kind"], registry=registry
        )
        self._webhooks = Counter("agent_webhooks", "Attempts to send a webhook.", ["status"], registry=registry)
        for status in ("delivered", "failed", "given_up"):
            self._webhooks.labels(status)
        self._bus_events = Counter(
            "agent_bus_events_of_runs", "Events of the bus that were made of what runs came to.", registry=registry
        )
        self._bus_removed = Counter(
            "agent_bus_events_removed", "Events of the bus that were past their time.", registry=registry
        )
        self._runs_woken = Counter(
            "agent_bus_runs_woken", "Runs that went on because an event came, or its time was up.", registry=registry
        )
        self._pool_starts = Counter(
            "agent_pool_process_starts", "Processes of agents' pools that were asked for.", registry=registry
        )
        self._pool_losses = Counter(
            "agent_pool_process_losses", "Processes of agents' pools whose lease was over.", registry=registry
        )
        self._services = Gauge(
            "agent_service_up",
            "Whether a service answers, by the controller that checks.",
            ["service"],
            registry=registry,
        )
        self._service_checks = Counter("agent_service_checks", "Checks of services.", ["result"], registry=registry)
        self._jobs_due = Gauge(
            "agent_jobs_due",
            "Bulk actions and exports that nobody carries out now, at most 100.",
            registry=registry,
        )
        self._stored = _StoredFiles()
        registry.register(self._stored)

    def jobs_collected(self, count: int) -> None:
        self._jobs_collected.inc(count)

    def sessions_removed(self, kind: str, count: int) -> None:
        """`kind`: folder, container, volume or job."""
        self._sessions_removed.labels(kind).inc(count)

    def bus_events_made(self, count: int) -> None:
        self._bus_events.inc(count)

    def bus_events_removed(self, count: int) -> None:
        self._bus_removed.inc(count)

    def run_woken(self) -> None:
        self._runs_woken.inc()

    def pool_processes_started(self, count: int) -> None:
        self._pool_starts.inc(count)

    def pool_process_lost(self) -> None:
        self._pool_losses.inc()

    def services(self, up: Mapping[str, bool]) -> None:
        """By name. Those that are not named are gone."""
        self._services.clear()
        for name, is_up in up.items():
            self._services.labels(name).set(is_up)

    def service_checked(self, *, failed: bool) -> None:
        self._service_checks.labels("failed" if failed else "ok").inc()

    def jobs_due(self, count: int) -> None:
        self._jobs_due.set(count)

    def webhook(self, status: WebhookEnd) -> None:
        """`failed`: another attempt follows; `given_up`: none does."""
        self._webhooks.labels(status).inc()

    def workspaces_measured(self, usage: WorkspaceUsage) -> None:
        self._stored.usage, self._stored.at = usage, time.time()

    def another_measures(self) -> None:
        """Another controller measures: the numbers of this one are old, and are not shown any more."""
        self._stored.usage = None


class _StoredFiles(Collector):
    """Shows nothing before the first measure: 0 would be wrong."""

    usage: WorkspaceUsage | None = None
    at = 0.0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self.usage is None:
            return
        yield GaugeMetricFamily("agent_workspace_stored_bytes", "Size of all files of all runs.", self.usage.bytes)
        yield GaugeMetricFamily("agent_workspace_stored_files", "Number of all files of all runs.", self.usage.files)
        yield GaugeMetricFamily("agent_workspace_measured_timestamp_seconds", "When these two were measured.", self.at)
