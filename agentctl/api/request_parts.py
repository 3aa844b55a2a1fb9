"""Parts of requests: query parameters that have a value, and names that become a segment of a path."""

from typing import Any
from urllib.parse import quote


def given(**parameters: Any) -> dict[str, Any]:
    """The parameters that have a value."""
    return {name: value for name, value in parameters.items() if value is not None}


def segment(text: str) -> str:
    return quote(text, safe="")
