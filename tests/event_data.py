"""The data of an event, for tests: the product only copies the line."""

import json
from typing import Any

from backplane.domain.event_data import DATA
from backplane.domain.events import Event


def data_of(event: Event) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(event.line)["data"]
    return data


def documented(event: Event) -> Event:
    """An event of a real worker, whose data are all documented."""
    data = data_of(event)
    unknown = data.keys() - DATA[event.type].keys()
    assert not unknown, f"backplane/domain/event_data.py does not say what {unknown} of {event.type} are"
    return event
