"""The one place where the kind of sandbox is chosen; each kind is a wing beside this file, and its `open` makes it from
the settings.

Only the chosen one is loaded: a worker on a laptop does not pay for the HTTP library of the Kubernetes client.
"""

from contextlib import AbstractAsyncContextManager

from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.base import Sandbox


def open_sandbox(settings: Settings, worker_id: str, metrics: WorkerMetrics) -> AbstractAsyncContextManager[Sandbox]:
    """The sandbox that SANDBOX names. Entering raises Unavailable when it cannot be had here."""
    match settings.sandbox:
        case "local":
            from worker.sandbox.local import open as local  # noqa: PLC0415 - 0.01 s of CPU

            return local.open_sandbox(settings, worker_id, metrics)
        case "container":
            from worker.sandbox.container import open as container  # noqa: PLC0415 - 0.03 s of CPU

            return container.open_sandbox(settings, worker_id, metrics)
        case "kubernetes":
            from worker.sandbox.kubernetes import open as kubernetes  # noqa: PLC0415 - 0.2 s of CPU and 10 MB

            return kubernetes.open_sandbox(settings, worker_id, metrics)
