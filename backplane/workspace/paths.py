"""Which file names a workspace can hold: one rule for the API, the tools and what a command left behind.

The rule is what an S3 key, a Linux file name and a listing in XML can all carry, so that a run's files may move between
stores. `check_path` normalises nothing: a name is taken as it is or refused, for two spellings of one file would be two
objects in a bucket. People and models write `./a.txt` and `src/` all the same: what tools are given goes through
`file_path` or `folder_path` first, which leave one spelling. Whether a file may be written (quota, a folder of that
name) is `quota.py`'s.
"""

import unicodedata

from backplane.errors import InvalidPath

MAX_PATH_BYTES = 900
"""An S3 key holds 1,024 bytes of UTF-8; the rest is for `users/{user_id}/runs/{run_id}/`."""

MAX_NAME_BYTES = 255
"""What Linux file systems hold between two slashes."""


def check_path(raw: str, *, max_depth: int = 64) -> str:
    """The path unchanged, when a workspace can hold it; else raises InvalidPath. `max_depth`: folders above it."""
    if not raw:
        raise _invalid("The path is empty: name a file, for example 'src/main.py'.")
    try:
        size = len(raw.encode())
    except UnicodeEncodeError:
        raise _invalid(f"The path {_shown(raw)} is not valid Unicode: rename the file in UTF-8.") from None
    if size > MAX_PATH_BYTES:
        raise _invalid(f"The path {_shown(raw)} is {size} bytes long: at most {MAX_PATH_BYTES} are possible.")
    if raw.startswith("/"):
        raise _invalid(f"The path {_shown(raw)} is absolute: give it relative to the workspace, without a leading '/'.")
    if "\\" in raw:
        raise _invalid(f"The path {_shown(raw)} contains a backslash: separate folders by '/'.")
    if not raw.isprintable() and any(map(_cannot_be_listed, raw)):
        raise _invalid(f"The path {_shown(raw)} contains a control character: rename the file.")

    names = raw.split("/")
    if len(names) - 1 > max_depth:
        raise _invalid(f"The path {_shown(raw)} lies {len(names) - 1} folders deep: at most {max_depth} are possible.")
    for name in names:
        if name in ("", ".", ".."):
            raise _invalid(f"The path {_shown(raw)} contains {name!r} as a name: write it without.")
        if len(name) * 4 > MAX_NAME_BYTES and len(name.encode()) > MAX_NAME_BYTES:
            raise _invalid(f"A name in the path {_shown(raw)} is over {MAX_NAME_BYTES} bytes long: shorten it.")
    return raw


def file_path(raw: str) -> str:
    """The path of a file without a leading `./`, checked. A slash at the end is refused: it names a folder."""
    return check_path(_without_dot(raw))


def folder_path(raw: str) -> str:
    """The path of a folder (or of a file) without a leading `./` and a slash at the end, checked; empty for `.`, which
    is the whole workspace."""
    path = _without_dot(raw)
    path = path if path.startswith("/") else path.rstrip("/")
    return "" if raw and path in ("", ".") else check_path(path)


def _without_dot(raw: str) -> str:
    while raw.startswith("./"):
        raw = raw[2:]
    return raw


def folders_above(path: str) -> list[str]:
    """Every folder that holds the file, outermost first: `a/b/c` gives `a`, `a/b`."""
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(1, len(names))]


def _cannot_be_listed(character: str) -> bool:
    return unicodedata.category(character) == "Cc" or character in "\ufffe\uffff"


def _shown(raw: str) -> str:
    return ascii(raw if len(raw) <= 80 else f"{raw[:60]}…{raw[-15:]}")


def _invalid(message: str) -> InvalidPath:
    return InvalidPath(message, field="path")
