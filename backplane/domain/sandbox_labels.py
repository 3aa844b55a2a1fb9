"""The names by which a sandbox that outlives its command is found again: labels of Jobs, pods, containers and volumes.

Written by the worker, read by the controller, which removes what nobody needs any more. Kubernetes allows 63 letters,
digits, dashes, dots and underscores in a label's value; Docker and Podman take any.
"""

import hashlib
import re

PART = "app.kubernetes.io/component"
SANDBOX = "sandbox"
"""The value of PART of everything that is made for foreign code."""

USER, RUN, STEP = "agent-platform/user", "agent-platform/run", "agent-platform/step"
GENERATION, TRIES = "agent-platform/generation", "agent-platform/tries"
WORKER = "agent-platform/worker"
POOL = "agent-platform/pool"
"""`warm`: started ahead of its use, of no run yet."""
CREATED = "agent-platform/created"
"""Seconds since 1970, on containers and volumes, whose own times engines write in different ways."""

SCRATCH_PREFIX = "agent-worker-"
"""How the folder in which a worker keeps its checkouts begins, below the machine's folder for temporary files."""

LONGEST_VALUE = 63

_SAFE_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def label_value(text: str) -> str:
    """`text` as Kubernetes allows it as a label's value: itself where that may be, else a digest of it."""
    if len(text) <= LONGEST_VALUE and _SAFE_VALUE.fullmatch(text):
        return text
    return "sha256-" + hashlib.sha256(f"{len(text)}:{text}".encode()).hexdigest()[:40]
