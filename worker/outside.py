"""What this worker's tools may reach, from its settings."""

from backplane.errors import InvalidInput
from backplane.net.egress import OutsidePolicy
from backplane.settings import Settings
from worker.tools.http_fetch import OutsideLimits


def policy_of(settings: Settings) -> OutsidePolicy:
    """Raises InvalidInput for a pattern in OUTSIDE_HOSTS that is none."""
    try:
        return OutsidePolicy(settings.outside_hosts, allow_private=settings.outside_allow_private)
    except InvalidInput as error:
        raise InvalidInput(f"OUTSIDE_HOSTS: {error.message}", field="OUTSIDE_HOSTS") from None


def limits_of(settings: Settings) -> OutsideLimits:
    return OutsideLimits(
        max_bytes=settings.outside_max_bytes,
        timeout_seconds=settings.outside_timeout_seconds,
        redirects=settings.outside_redirects,
    )
