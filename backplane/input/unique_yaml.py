"""YAML in which no mapping has a key twice, and which is not much larger than it looks.

Of two equal keys a parser keeps the last and is silent, so that `approval: true` could be undone by a line further
down. Here it is an error that names the key and both lines. An alias stands for all that its anchor names, aliases too:
ten lines can stand for a billion values, which nobody means.
"""

from collections.abc import Hashable
from typing import Any

import yaml

VALUES_MAX = 200_000
"""Keys and values, where each alias is counted as what it stands for."""


class DuplicateKey(yaml.YAMLError):
    """The message names the key and the lines in which it stands."""


def loads(text: str) -> Any:
    """As `yaml.safe_load`. Raises DuplicateKey, YAMLError, and what the values of YAML raise: ValueError, TypeError,
    RecursionError."""
    return yaml.load(text, _Unique)  # noqa: S506 - a safe loader


class TooManyAliased(yaml.YAMLError):
    """The message names the line where a value begins that has too many within it."""


class _Unique(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.CollectionNode) and node not in self._sizes:
            mapping = isinstance(node, yaml.MappingNode)
            within = (part for pair in node.value for part in pair) if mapping else node.value
            self._sizes[node] = 1 + sum(self._sizes.get(part, 1) for part in within)
            if self._sizes[node] > VALUES_MAX:
                line = node.start_mark.line + 1
                raise TooManyAliased(
                    f"line {line}: with what its aliases stand for, it has more than {VALUES_MAX:,} values"
                )
        return node

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
