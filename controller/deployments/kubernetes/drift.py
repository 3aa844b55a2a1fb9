"""What a cluster has against what was declared for it. It is shown and not mended: whoever changed it had a reason, and
a controller that changes it back at once would fight them.

Only what is declared is compared; what the server and its controllers add is not of interest. Of lists whose entries
have names, an entry more is drift too: a container or a variable that nobody declared.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backplane.domain.quantities import cpu_millis, memory_bytes

LINES_MAX = 50
VALUE_CHARS = 100
_AMOUNTS = (".limits.", ".requests.")


def drift_of(declared: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    """A line each, `Service spec.type: wanted ClusterIP, found NodePort`."""
    kind = str(declared["kind"])
    for part in declared:
        if part not in ("apiVersion", "kind"):
            for path, wanted, found in _differences(part, declared[part], live.get(part)):
                yield f"{kind} {path}: wanted {_shown(wanted)}, found {_shown(found)}"


def _differences(path: str, wanted: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for name, value in wanted.items():
            yield from _differences(f"{path}.{name}", value, found.get(name))
    elif isinstance(wanted, list) and isinstance(found, list):
        yield from _differences_of_lists(path, wanted, found)
    elif not _same(path, wanted, found):
        yield path, wanted, found


def _differences_of_lists(path: str, wanted: Sequence[Any], found: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    names_wanted, names_found = _by_name(wanted), _by_name(found)
    if names_wanted is None or names_found is None:
        if len(wanted) != len(found):
            yield path, wanted, found
            return
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(f"{path}[{number}]", one, other)
        return
    for name in dict.fromkeys([*names_wanted, *names_found]):
        yield from _differences(f"{path}[{name}]", names_wanted.get(name), names_found.get(name))


def _by_name(entries: Sequence[Any]) -> dict[str, Any] | None:
    if not all(isinstance(one, Mapping) and "name" in one for one in entries):
        return None
    return {str(one["name"]): one for one in entries}


def _same(path: str, wanted: Any, found: Any) -> bool:
    if any(part in f"{path}." for part in _AMOUNTS) and isinstance(wanted, str) and isinstance(found, str):
        try:
            amount = cpu_millis if path.endswith(".cpu") else memory_bytes
            return amount(wanted) == amount(found)
        except ValueError:
            return wanted == found
    # An empty object or list says what its absence says.
    return bool(wanted == found) or (wanted in ("", {}, []) and found is None)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_CHARS else f"{text[: VALUE_CHARS - 1]}…"
