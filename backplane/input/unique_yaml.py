"""YAML in which no mapping has a key twice.

Of two equal keys a parser keeps the last and is silent, so that `approval: true` could be undone by a line further
down. Here it is an error that names the key and both lines.
"""

from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKey(yaml.YAMLError):
    """The message names the key and the lines in which it stands."""


def loads(text: str) -> Any:
    """As `yaml.safe_load`. Raises DuplicateKey, YAMLError, and what the values of YAML raise: ValueError, TypeError,
    RecursionError."""
    return yaml.load(text, _Unique)  # noqa: S506 - a safe loader


class _Unique(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            # `<<` takes over the keys of another mapping; its own go before them.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if isinstance(name, Hashable) and name in lines:
                raise DuplicateKey(f"line {line}: {name!r} stands there twice, first in line {lines[name]}; keep one")
            lines[name] = line
        return super().construct_mapping(node, deep=deep)
