"""How events get from a worker to whoever watches: read by workers and the API."""

from pydantic import Field

from backplane.domain.sizes import KIB, MIB


class StreamSettings:
    stream_heartbeat_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a comment line.")
    stream_send_timeout_seconds: float = Field(
        60.0, gt=0, description="A reader that reads nothing for so long is disconnected."
    )
    stream_ring_events: int = Field(2048, ge=16, description="Events of a watched run held in the API process.")
    stream_redis_run_bytes: int = Field(4 * MIB, ge=64 * KIB, description="The same in bytes.")
    stream_redis_user_bytes: int = Field(16 * MIB, ge=64 * KIB, description="The same of all runs of a user, in bytes.")
    stream_redis_bytes: int = Field(
        0, ge=0, description="The same of all runs, in bytes; 0: a fourth of Redis's maxmemory, 256 MiB if it has none."
    )
    stream_watchers_max: int = Field(
        10_000,
        ge=1,
        description="Streams that one API process serves at once; free, standard and beta fill 70, 80 and 90 % of it.",
    )
    stream_watchers_user_max: int = Field(
        200, ge=1, description="Of these, at most so many of one user, and never more than half."
    )
    events_flush_seconds: float = Field(
        0.02, ge=0, description="How long events are gathered before the database write."
    )
