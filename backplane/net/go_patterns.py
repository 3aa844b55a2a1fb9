"""Whether a regular expression is one that Go takes, as the tunnel's rules are written in it.

Go's expressions have no lookaround and no references. What Go has and Python has not is refused too, since nothing here
could check it.
"""

import re

REPEATED_MAX = 1000

_NOT_IN_GO = re.compile(r"\(\?(?:[=!>(#]|<[=!]|P=)|\\[1-9]|\\[ZGk]|[*+?}]\+")
_REPEATED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def go_pattern_fault(pattern: str) -> str:
    """Why the expression cannot be used; empty: it can."""
    if found := _NOT_IN_GO.search(pattern):
        return f"a regular expression of Go has no {found[0]!r}"
    if any(max(int(least), int(most or 0)) > REPEATED_MAX for least, most in _REPEATED.findall(pattern)):
        return f"a regular expression of Go repeats at most {REPEATED_MAX:,} times"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is no regular expression: {error}"
    return ""
