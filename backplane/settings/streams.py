"""How events get from a worker to whoever watches: read by workers and the API."""

from pydantic import Field


class StreamSettings:
    stream_heartbeat_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a comment line.")
    stream_redis_bytes: int = Field(
        0,
        ge=0,
        description="Events of all runs that Redis holds until the database has them, in bytes; 0: a fourth of Redis's "
        "maxmemory, 256 MiB if it has none.",
    )
    stream_watchers_max: int = Field(
        10_000,
        ge=1,
        description="Streams that one API process serves at once; free, standard and beta fill 70, 80 and 90 % of it.",
    )
    stream_watchers_user_max: int = Field(
        200, ge=1, description="Of these, at most so many of one user, and never more than half."
    )
