"""The names by which a sandbox that outlives its command is found again: labels of Jobs, pods, containers and volumes.

Written by the worker, read by the controller, which removes what nobody needs any more. Kubernetes allows 63 letters,
digits, dashes, dots and underscores in a label's value; Docker and Podman take any.
"""

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

LONGEST_VALUE = 63
