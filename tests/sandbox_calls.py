"""A call of a sandbox, for tests that start none."""

from worker.sandbox.base import Call, Limits

LIMITS = Limits(
    wall_seconds=60,
    memory_bytes=1000,
    cpus=0.5,
    cpu_seconds=20,
    processes=32,
    file_bytes=3000,
    disk_bytes=4000,
    files=10,
)
CALL = Call("ann", "run", "step", generation=1, tries=1)
