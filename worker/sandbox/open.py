"""The one place where the kind of sandbox is chosen; each kind is a wing beside this file, and its `open` makes it from
the settings.

Only the chosen one is loaded: the HTTP library of the Kubernetes client alone costs 0.2 s and 25 MB, which a worker on
a laptop should not pay for.
"""

from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import cast

from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.base import Sandbox


def open_sandbox(settings: Settings, worker_id: str, metrics: WorkerMetrics) -> AbstractAsyncContextManager[Sandbox]:
    """The sandbox that SANDBOX names. Entering raises Unavailable when it cannot be had here."""
    chosen = import_module(f"worker.sandbox.{settings.sandbox}.open")
    return cast(AbstractAsyncContextManager[Sandbox], chosen.open_sandbox(settings, worker_id, metrics))
