"""What an event tells, for tests: the product only copies the line."""

import json
from typing import Any

from backplane.events import Event


def data_of(event: Event) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(event.line)["data"]
    return data
