"""What a process that carries out bulk actions and exports counts: pieces, how long each took, and how it ended.

Each piece is carried out in a process of its own, which counts nothing: it is counted by the one that waits for it.
What a piece did is in the database, and what waits there is counted by the controllers (`agent_jobs_due`).
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.1, 1.0, 5.0, 11.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
"""A piece of a bulk action takes ten seconds and its last run; an export may take an hour."""


class JobsMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._pieces = Counter(
            "agent_job_pieces",
            "Pieces of bulk actions and exports that were carried out here: ended, or killed in the middle.",
            ["end"],
            registry=registry,
        )
        for end in ("ended", "killed"):
            self._pieces.labels(end)
        self._seconds = Histogram(
            "agent_job_piece_seconds", "How long a piece took.", buckets=SECONDS, registry=registry
        )

    def piece(self, seconds: float, *, killed: bool) -> None:
        self._pieces.labels("killed" if killed else "ended").inc()
        self._seconds.observe(seconds)
